#pragma once

#include <sys/wait.h>
#include <unistd.h>
#include <array>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace transpool {

struct Finished {
  int code;
  std::string output;  ///< stdout and stderr together
};

/// Runs the transpool program with shell words after it.
inline Finished run_transpool(const std::string& arguments) {
  FILE* pipe = popen((std::string(TRANSPOOL_PROGRAM) + " " + arguments + " 2>&1").c_str(), "r");
  Finished finished{-1, ""};
  std::array<char, 4096> buffer{};
  for (std::size_t got = 0; (got = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
    finished.output.append(buffer.data(), got);
  const int status = pclose(pipe);
  finished.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return finished;
}

/// Starts the program in the background; its output goes nowhere.
inline pid_t start_transpool(std::vector<std::string> arguments) {
  const pid_t child = fork();
  if (child != 0) return child;
  if (freopen("/dev/null", "w", stderr) == nullptr || freopen("/dev/null", "w", stdout) == nullptr) _exit(1);
  std::string program = TRANSPOOL_PROGRAM;
  std::vector<char*> values = {program.data()};
  for (auto& argument : arguments) values.push_back(argument.data());
  values.push_back(nullptr);
  execv(program.c_str(), values.data());
  _exit(127);
}

/// The first child of a process, or -1.
inline pid_t first_child(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/task/" + std::to_string(process) + "/children");
  pid_t child = -1;
  return file >> child ? child : -1;
}

/// A folder of its own that goes with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "transpool_test_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace transpool
