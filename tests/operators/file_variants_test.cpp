#include "operators/pooling/pooling.h"

#include "tests/operators/gradcheck.h"
#include "tests/operators/variants.h"

#include <gmock/gmock.h>
#include <torch/csrc/jit/api/module.h>

#include <unistd.h>
#include <filesystem>
#include <fstream>

namespace transpool {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr const char* first_k = R"(
def forward(self, x, scores, k: int, lengths: Optional[Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
    kept = scores[:, :k]
    positions = torch.arange(k, device=x.device).unsqueeze(0).expand_as(kept)
    return x[:, :k] * (kept * self.factor).unsqueeze(2), kept, positions
)";

class FileVariants : public testing::Test {
 protected:
  void SetUp() override {
    torch::manual_seed(5);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  std::string save(const std::string& name, const std::string& source) const {
    torch::jit::Module module("M");
    module.register_parameter("factor", at::full({}, 2.0), /*is_buffer=*/false);
    module.define(source);
    module.save(path(name));
    return path(name);
  }

  static std::shared_ptr<const PoolingOperator> make(const Json& value) {
    const auto selection = pooling_registry().select(value);
    return selection.variant->make(selection.options);
  }

  static std::string refusal(const Json& value) {
    return message_of([&] { make(value); });
  }

 private:
  std::filesystem::path folder_ =
      std::filesystem::path(testing::TempDir()) / ("file_variants_" + std::to_string(::getpid()));
};

TEST_F(FileVariants, ATorchScriptFileIsAnOperatorWhoseParametersFollowTheRows) {
  const auto op = make({{"name", "torchscript"}, {"file", save("first.pt", first_k)}});
  EXPECT_EQ(op->backend(at::kCPU), "torchscript");
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const auto x = at::randn({2, 9, 3}, dtype), scores = at::rand({2, 9}, dtype);
    const auto pooled = op->forward(x, scores, 4, std::nullopt);
    EXPECT_TRUE(close(pooled.values, 2 * x.narrow(1, 0, 4) * scores.narrow(1, 0, 4).unsqueeze(2), 1e-6, 1e-6));
    EXPECT_TRUE(at::equal(pooled.positions, at::arange(4).expand({2, 4})));
  }
  EXPECT_TRUE(gradients_match_differences(
      [&](const std::vector<at::Tensor>& in) {
        return std::vector<at::Tensor>{op->forward(in[0], in[1], 2, std::nullopt).values};
      },
      {at::randn({2, 4, 2}, at::kDouble), at::rand({2, 4}, at::kDouble)}));
}

TEST_F(FileVariants, ATorchScriptFileIsCheckedAgainstTheOperatorThatItNames) {
  const auto file = save("first.pt", first_k);
  const auto reference = [&](const Json& against) {
    const auto selection = pooling_registry().select({{"name", "torchscript"}, {"file", file}, {"against", against}});
    return selection.variant->reference(selection.options);
  };
  const auto x = at::randn({2, 9, 3}), scores = at::rand({2, 9});
  const auto hard = make({{"name", "hard_topk"}, {"gradient", "none"}})->forward(x, scores, 4, std::nullopt);
  EXPECT_TRUE(
      at::equal(reference({{"name", "hard_topk"}, {"gradient", "none"}})->forward(x, scores, 4, std::nullopt).positions,
                hard.positions));
  EXPECT_TRUE(at::equal(reference(nullptr)->forward(x, scores, 4, std::nullopt).positions, at::arange(4).expand({2, 4})));
  EXPECT_THAT(message_of([&] { reference("hard_top"); }), AllOf(HasSubstr("against"), HasSubstr("hard_topk")));
}

TEST_F(FileVariants, FilesThatDoNotFitAreNamedWithWhatIsAllowed) {
  std::ofstream(path("text.pt")) << "no archive";
  const auto script = [&](const std::string& file) { return refusal({{"name", "torchscript"}, {"file", file}}); };
  const auto package = [&](const std::string& file) {
    return refusal({{"name", "aoti"}, {"file", file}, {"against", "hard_topk"}});
  };
  EXPECT_THAT(script(path("none.pt")), AllOf(HasSubstr("\"torchscript\""), HasSubstr("none.pt\" is not there")));
  EXPECT_THAT(script(path("text.pt")), HasSubstr("text.pt\" is no TorchScript file"));
  EXPECT_THAT(script(save("two.pt", "def forward(self, x, scores):\n    return x * scores.unsqueeze(2)\n")),
              AllOf(HasSubstr("two.pt"), HasSubstr("int k")));
  EXPECT_THAT(script(save("other.pt", "def pool(self, x):\n    return x\n")), HasSubstr("no method forward"));
  EXPECT_THAT(package(path("none.pt2")), AllOf(HasSubstr("\"aoti\""), HasSubstr("none.pt2\" is not there")));
  EXPECT_THAT(package(path("text.pt")), HasSubstr("no AOTInductor package"));
  EXPECT_THAT(refusal("torchscript"), HasSubstr("missing"));
  EXPECT_THAT(refusal({{"name", "aoti"}, {"file", path("text.pt")}}), AllOf(HasSubstr("missing"), HasSubstr("against")));
}

TEST_F(FileVariants, WrongResultsAndLengthsThatAreNotTakenAreRefused) {
  const auto wrong = make({{"name", "torchscript"}, {"file", save("wrong.pt", R"(
def forward(self, x, scores, k: int) -> Tuple[Tensor, Tensor, Tensor]:
    return x, scores, scores
)")}});
  const auto x = at::randn({2, 9, 3}), scores = at::rand({2, 9});
  EXPECT_THAT(message_of([&] { wrong->forward(x, scores, 4, std::nullopt); }),
              AllOf(HasSubstr("wrong.pt"), HasSubstr("values are Float of shape (2, 9, 3)"), HasSubstr("(2, 4, 3)")));
  EXPECT_THAT(message_of<Unsupported>([&] { wrong->forward(x, scores, 4, at::full({2}, 9, at::kLong)); }),
              HasSubstr("takes no lengths"));
}

TEST_F(FileVariants, TheyDoNotRunByNameAlone) {
  EXPECT_FALSE(runs_by_name(pooling_registry().find("torchscript")));
  EXPECT_FALSE(runs_by_name(pooling_registry().find("aoti")));
  EXPECT_TRUE(runs_by_name(pooling_registry().find("hard_topk")));
}

}  // namespace
}  // namespace transpool
