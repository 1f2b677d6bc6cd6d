#include "runners/sweep/worker.h"

#include "runners/measure/level.h"
#include "runners/measure/memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace transpool {
namespace {

/// Writes all of it; false where the other side is gone.
bool write_line(int file, const std::string& text) {
  const std::string line = text + "\n";
  for (std::size_t done = 0; done < line.size();) {
    const auto wrote = write(file, line.data() + done, line.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return false;
    done += static_cast<std::size_t>(wrote);
  }
  return true;
}

Record ended_record(const Cell& cell, Status status, const std::string& reason, double seconds) {
  Cell skipped = cell;
  skipped.skip_reason = reason;
  auto record = measure_cell(skipped);
  record.status = status;
  record.seconds = seconds;
  return record;
}

}  // namespace

Worker::Worker(std::string program, std::vector<std::string> arguments)
    : program_(std::move(program)), arguments_(std::move(arguments)) {
  // A worker that died must give an error of write(), not end the runner.
  std::signal(SIGPIPE, SIG_IGN);
}

Worker::~Worker() { stop(); }

void Worker::start() {
  int to_child[2], from_child[2];
  if (pipe2(to_child, O_CLOEXEC) != 0 || pipe2(from_child, O_CLOEXEC) != 0)
    throw std::runtime_error(fmt::format("no pipe to a worker: {}", std::strerror(errno)));
  std::vector<char*> arguments = {program_.data()};
  for (auto& argument : arguments_) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  const pid_t parent = getpid();
  process_ = fork();
  if (process_ < 0) throw std::runtime_error(fmt::format("no worker process: {}", std::strerror(errno)));
  if (process_ == 0) {
    // A worker must not outlive a killed runner, and Ctrl-C is the runner's to handle.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    setpgid(0, 0);
    dup2(to_child[0], 0);
    dup2(from_child[1], 3);
    dup2(2, 1);
    // Spinning OpenMP threads stall each other for minutes on two cores; a value that the user set is kept.
    setenv("OMP_WAIT_POLICY", "passive", 0);
    execv(program_.c_str(), arguments.data());
    _exit(127);
  }
  close(to_child[0]);
  close(from_child[1]);
  requests_ = to_child[1];
  answers_ = from_child[0];
}

void Worker::stop() {
  if (process_ < 0) return;
  kill(process_, SIGKILL);
  waitpid(process_, nullptr, 0);
  close(requests_);
  close(answers_);
  process_ = requests_ = answers_ = -1;
}

/// Waits for the dead worker and says how it ended.
std::string Worker::ending() {
  int status = 0;
  waitpid(process_, &status, 0);
  close(requests_);
  close(answers_);
  process_ = requests_ = answers_ = -1;
  if (WIFSIGNALED(status))
    return fmt::format("the worker process was ended by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
  return fmt::format("the worker process ended with exit code {}", WEXITSTATUS(status));
}

std::optional<Record> Worker::measure(const Cell& cell, double timeout_seconds, const std::function<bool()>& interrupted) {
  if (process_ < 0) start();
  const auto began = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count(); };
  std::string answer;
  if (write_line(requests_, to_json(cell).dump())) {
    while (true) {
      pollfd waiting{answers_, POLLIN, 0};
      const int ready = poll(&waiting, 1, 100);
      if (interrupted()) {
        stop();
        return std::nullopt;
      }
      if (ready > 0) {
        char buffer[65536];
        const auto got = read(answers_, buffer, sizeof buffer);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        answer.append(buffer, static_cast<std::size_t>(got));
        if (answer.back() == '\n') return record_from_json(Json::parse(answer));
      }
      if (elapsed() > timeout_seconds) {
        stop();
        return ended_record(cell, Status::timeout, fmt::format("not done after {} s (timeout_seconds)", timeout_seconds),
                            elapsed());
      }
    }
  }
  return ended_record(cell, Status::crashed, ending(), elapsed());
}

int serve_cells(int requests, int answers) {
  install_memory_hook();
  std::string pending;
  char buffer[65536];
  while (true) {
    const auto got = read(requests, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return 0;
    pending.append(buffer, static_cast<std::size_t>(got));
    for (auto end = pending.find('\n'); end != std::string::npos; end = pending.find('\n')) {
      const auto cell = cell_from_json(Json::parse(pending.substr(0, end)));
      pending.erase(0, end + 1);
      if (!write_line(answers, to_json(measure_cell(cell)).dump())) return 1;
    }
  }
}

}  // namespace transpool
