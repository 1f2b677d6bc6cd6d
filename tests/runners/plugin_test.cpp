#include "tests/runners/run_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

namespace transpool {
namespace {

using testing::HasSubstr;

/// Compiles last_k.cpp to `library`, with further flags. The compile command is the build's own, so that a plug-in is built
/// exactly as a user's CMake would.
void build_plugin(const std::string& library, const std::string& flags = "") {
  const auto compile = std::string(PLUGIN_COMPILE_COMMAND) + " " + flags + " -shared -o " + library + " " + TEST_FOLDER +
                       "/runners/golden/plugin/last_k.cpp > " + library + ".log 2>&1";
  ASSERT_EQ(std::system(compile.c_str()), 0) << compile;
}

TEST(Plugin, AVariantCompiledOutsideTheTreeIsListedAndRuns) {
  const TemporaryFolder folder;
  const auto library = (folder / "last_k.so").string();
  ASSERT_NO_FATAL_FAILURE(build_plugin(library));
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

std::string text_of(const std::filesystem::path& file) {
  std::ifstream stream(file);
  return {std::istreambuf_iterator<char>(stream), {}};
}

struct HeaderChange {
  std::string header, from, to;
};

/// Copies the header below `folder`, where -iquote finds it before the tree's, with the change made.
void change_header(const std::filesystem::path& folder, const HeaderChange& change) {
  auto text = text_of(std::filesystem::path(SOURCE_FOLDER) / change.header);
  const auto at = text.find(change.from);
  ASSERT_NE(at, std::string::npos) << change.header << " does not hold " << change.from;
  text.replace(at, change.from.size(), change.to);
  std::filesystem::create_directories((folder / change.header).parent_path());
  std::ofstream(folder / change.header) << text;
}

TEST(Plugin, OneBuiltAgainstAnotherLayoutIsRefused) {
  const std::vector<HeaderChange> changes = {
      {"operators/options.h", "bool optional = false;", "bool optional = false; double step = 0;"},
      {"operators/layout.h", "interface_version = 1;", "interface_version = 0;"}};
  for (const auto& change : changes) {
    SCOPED_TRACE(change.to);
    const TemporaryFolder folder;
    const auto library = (folder / "last_k.so").string();
    ASSERT_NO_FATAL_FAILURE(change_header(folder / "changed", change));
    ASSERT_NO_FATAL_FAILURE(build_plugin(library, "-iquote " + (folder / "changed").string()));
    for (const std::string call : {"list pooling", "check pooling last_k"}) {
      const auto refused = run_transpool(call + " --plugin " + library);
      EXPECT_EQ(refused.code, 2) << refused.output;
      EXPECT_THAT(refused.output, HasSubstr("--plugin: " + library + ": pooling operator built against another version"));
    }
  }
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
