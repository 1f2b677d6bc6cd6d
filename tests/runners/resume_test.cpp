#include "runners/report/report.h"
#include "tests/runners/run_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <set>
#include <thread>

namespace transpool {
namespace {

using testing::HasSubstr;

constexpr int cells = 12;

class ResumeTest : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(file_) << R"({"name": "resume", "level": "operator", "measure": ["time", "memory", "flops"],
      "fixed": {"batch": 2, "width": 16, "source_length": 64, "pooled_length": 8},
      "timing": {"warmup": 1, "min_samples": 3, "max_samples": 5, "cap_seconds": 0.1},
      "axes": {"pooling": ["hard_topk", "successive_halving", "successive_halving_rounds"]}, "seeds": [0, 1, 2, 3]})";
  }

  std::string run(const std::string& more = "") const {
    return "run " + file_.string() + " --out " + out_.string() + " " + more;
  }

  void expect_every_cell_once() {
    const auto report = read_report(out_);
    std::set<std::string> ids;
    for (const auto& record : report.records) {
      EXPECT_TRUE(ids.insert(record.id).second) << record.id << " is there twice";
      EXPECT_EQ(record.status, Status::ok) << record.reason;
    }
    EXPECT_EQ(ids.size(), static_cast<std::size_t>(cells));
    std::ifstream lines(out_ / "records.jsonl");
    std::size_t count = 0;
    for (std::string line; std::getline(lines, line);) ++count;
    EXPECT_EQ(count, static_cast<std::size_t>(cells));
  }

  TemporaryFolder folder_;
  std::filesystem::path file_ = folder_ / "resume.json";
  std::filesystem::path out_ = folder_ / "out";
  std::mt19937 random_{7};
};

TEST_F(ResumeTest, AnUndisturbedRunHoldsEveryCell) {
  EXPECT_EQ(run_transpool(run()).code, 0);
  expect_every_cell_once();
}

TEST_F(ResumeTest, KilledRunnersGoOnWhereTheyStopped) {
  for (int kills = 0; kills < 20; ++kills) {
    const auto runner = start_transpool({"run", file_.string(), "--out", out_.string(), "--resume"});
    std::this_thread::sleep_for(std::chrono::milliseconds(std::uniform_int_distribution<>(0, 4000)(random_)));
    kill(runner, SIGKILL);
    waitpid(runner, nullptr, 0);
    if (std::filesystem::exists(out_ / "report.json")) read_report(out_);
  }
  EXPECT_EQ(run_transpool(run("--resume")).code, 0);
  expect_every_cell_once();
}

TEST_F(ResumeTest, AKilledWorkerCostsItsCellAlone) {
  for (int kills = 0; kills < 20; ++kills) {
    const auto runner = start_transpool({"run", file_.string(), "--out", out_.string(), "--resume"});
    std::this_thread::sleep_for(std::chrono::milliseconds(std::uniform_int_distribution<>(200, 3000)(random_)));
    if (const auto worker = first_child(runner); worker > 0) kill(worker, SIGKILL);
    int status = 0;
    waitpid(runner, &status, 0);
    ASSERT_TRUE(WIFEXITED(status));
    const auto report = read_report(out_);
    EXPECT_EQ(report.records.size(), static_cast<std::size_t>(cells));
    for (const auto& record : report.records)
      EXPECT_TRUE(record.status == Status::ok || record.reason.find("signal 9") != std::string::npos) << record.reason;
  }
  EXPECT_EQ(run_transpool(run("--resume")).code, 0);
  expect_every_cell_once();
}

TEST_F(ResumeTest, AnotherExperimentsFolderIsRefusedAndLeftAlone) {
  EXPECT_EQ(run_transpool(run()).code, 0);
  const auto again = run_transpool(run());
  EXPECT_EQ(again.code, 2);
  EXPECT_THAT(again.output, HasSubstr("--resume"));
  const auto other = run_transpool(run("--resume --set fixed.batch=3"));
  EXPECT_EQ(other.code, 2);
  EXPECT_THAT(other.output, HasSubstr("with other settings"));
  expect_every_cell_once();
}

}  // namespace
}  // namespace transpool

// ctest-labels: slow
