#include "tests/runners/run_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace transpool {
namespace {

using testing::HasSubstr;

/// The compile command is this file's own, so that a plug-in is built exactly as a user's CMake would.
TEST(Plugin, AVariantCompiledOutsideTheTreeIsListedAndRuns) {
  const TemporaryFolder folder;
  const auto library = (folder / "last_k.so").string();
  const std::string compile = std::string(PLUGIN_COMPILE_COMMAND) + " -shared -o " + library + " " + TEST_FOLDER +
                              "/runners/golden/plugin/last_k.cpp > " + (folder / "log").string() + " 2>&1";
  ASSERT_EQ(std::system(compile.c_str()), 0) << compile;
  const auto list = run_transpool("list pooling --plugin " + library);
  EXPECT_EQ(list.code, 0) << list.output;
  EXPECT_THAT(list.output, HasSubstr("last_k"));
  EXPECT_THAT(list.output, HasSubstr("successive_halving"));
  std::ofstream(folder / "p.json")
      << R"({"name": "p", "level": "operator", "measure": ["memory"], "fixed": {"batch": 1, "source_length": 16,
    "pooled_length": 4, "width": 8, "pass": "forward"}, "axes": {"pooling": ["last_k"]}})";
  const auto run =
      run_transpool("run " + (folder / "p.json").string() + " --out " + (folder / "out").string() + " --plugin " + library);
  EXPECT_EQ(run.code, 0) << run.output;
}

TEST(Plugin, AFileThatIsNoPluginIsNamed) {
  const auto missing = run_transpool("list --plugin nowhere.so");
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.output, HasSubstr("nowhere.so is not there"));
  const auto text = run_transpool("list --plugin " + std::string(TEST_FOLDER) + "/CMakeLists.txt");
  EXPECT_EQ(text.code, 2) << text.output;
}

}  // namespace
}  // namespace transpool
