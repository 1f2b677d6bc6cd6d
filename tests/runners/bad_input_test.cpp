#include "tests/runners/run_process.h"

#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>

namespace transpool {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// An experiment on one small pooling cell, in a file of its own.
class BadInput : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(folder_ / "p.json")
        << R"({"name": "p", "level": "operator", "measure": ["memory"], "fixed": {"batch": 1, "source_length": 16,
    "pooled_length": 4, "width": 8, "pass": "forward"}, "axes": {"pooling": ["hard_topk"]}})";
  }

  std::filesystem::path out() const { return folder_ / "out"; }

  Finished run(const std::string& setting) const {
    return run_transpool("run " + (folder_ / "p.json").string() + " --out " + out().string() + " --set '" + setting + "'");
  }

  TemporaryFolder folder_;
};

TEST_F(BadInput, OperatorOptionAndRangeAreNamedBeforeAnythingIsWritten) {
  const struct {
    const char *setting, *place, *allowed;
  } cases[] = {
      {R"(axes.pooling={"name": "softsort", "temprature": 1})", "softsort\" \"temprature\"",
       "did you mean \"temperature\"?"},
      {R"(axes.pooling={"name": "softsort", "temperature": -1})", "temperature: -1 is out of range", "from 1e-09"},
      {R"(axes.pooling={"name": "softsort", "temperature": 0})", "temperature: 0 is out of range", "from 1e-09"},
      {R"(axes.pooling={"name": "softsort", "temperature": "low"})", "\"low\" is not allowed", "number from 1e-09"},
      {R"(axes.pooling={"name": "successive_halving", "base": 1})", "base: 1 is out of range", "number from 1.0001"},
      {R"(axes.pooling={"name": "torchscript"})", "\"torchscript\" \"file\"", "text"},
      {R"(axes.pooling="softsrt")", "\"softsrt\"", "did you mean \"softsort\"?"},
      {"fixed.pooled_length=17", "pooled_length: 17 is out of range", "1 to source_length = 16"},
      {"fixed.pooled_length=0", "pooled_length: 0 is out of range", "integer from 1"},
      {"fixed.batch=0", "batch: 0 is out of range", "integer from 1"},
      {"fixed.dtype=int8", "dtype \"int8\"", "float32"},
      {"fixed.lengths=99", "lengths: 99 is not allowed", "one of full, random"},
  };
  for (const auto& c : cases) {
    const auto result = run(c.setting);
    EXPECT_EQ(result.code, 2) << c.setting;
    EXPECT_THAT(result.output, AllOf(HasSubstr(c.place), HasSubstr(c.allowed))) << c.setting;
    EXPECT_FALSE(std::filesystem::exists(out())) << c.setting;
  }
}

TEST_F(BadInput, FilesThatDoNotFitCostTheirCellsAlone) {
  const auto text = (folder_ / "text.pt").string();
  std::ofstream(text) << "no archive";
  const auto two = (folder_ / "two.pt").string();
  torch::jit::Module module("Two");
  module.register_parameter("factor", at::full({}, 2.0), /*is_buffer=*/false);
  module.define("def forward(self, x, scores):\n    return x * scores.unsqueeze(2)\n");
  module.save(two);
  const auto file = [](const std::string& path) { return R"({"name": "torchscript", "file": ")" + path + R"("})"; };
  const auto result =
      run("axes.pooling=[" + file(text) + ", " + file(two) + ", " + file("nowhere.pt") + R"(, "hard_topk"])");
  EXPECT_EQ(result.code, 1) << result.output;
  EXPECT_THAT(result.output, AllOf(HasSubstr("text.pt\" is no TorchScript file"), HasSubstr("two.pt"), HasSubstr("int k"),
                                   HasSubstr("nowhere.pt\" is not there")));
  const auto table = run_transpool("show " + (out() / "report.json").string());
  const auto report = run_transpool("table " + out().string() + " --format csv");
  EXPECT_EQ(report.code, 0) << report.output;
  EXPECT_THAT(report.output, AllOf(HasSubstr("failed"), HasSubstr("hard_topk"))) << table.output;
}

TEST_F(BadInput, CheckNamesWhatItCannotCheck) {
  const auto unknown = run_transpool("check pooling softsrt");
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.output, HasSubstr("did you mean \"softsort\"?"));
  const auto incomplete = run_transpool("check pooling torchscript");
  EXPECT_EQ(incomplete.code, 2);
  EXPECT_THAT(incomplete.output, HasSubstr("\"torchscript\" \"file\""));
}

/// A plug-in refers to functions of the program by their signatures: those of another version are not there.
TEST_F(BadInput, APlugInBuiltAgainstAnotherVersionIsNamedWithWhatItMisses) {
  const auto source = (folder_ / "old.cpp").string(), library = (folder_ / "old.so").string();
  std::ofstream(source) << "namespace transpool { void register_pooling_of_version_0(); }\n"
                           "static const int registered = (transpool::register_pooling_of_version_0(), 0);\n";
  ASSERT_EQ(std::system((std::string(PLUGIN_COMPILE_COMMAND) + " -shared -o " + library + " " + source).c_str()), 0);
  const auto result = run_transpool("list pooling --plugin " + library);
  EXPECT_EQ(result.code, 2) << result.output;
  EXPECT_THAT(result.output, AllOf(HasSubstr("old.so"), HasSubstr("register_pooling_of_version_0"),
                                   HasSubstr("build it against this version")));
}

}  // namespace
}  // namespace transpool
