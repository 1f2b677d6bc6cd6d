#include "runners/cli/plugin.h"

#include "operators/error.h"

#include <dlfcn.h>

#include <filesystem>

namespace transpool::cli {
namespace {

/// dlopen is declared to throw nothing, and a compiler drops what would catch; yet the registrations that it runs do throw.
using Open = void* (*)(const char*, int);
Open volatile open_library = dlopen;

}  // namespace

void load_plugins(const std::vector<std::string>& files) {
  for (const auto& file : files) {
    const auto path = std::filesystem::absolute(file);
    if (!std::filesystem::exists(path)) throw UsageError("--plugin: " + file + " is not there; allowed: a shared library");
    try {
      // Kept for the life of the program: the registry holds its functions.
      if (open_library(path.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
        const std::string reason = dlerror();
        const bool misses = reason.find("undefined symbol") != std::string::npos;
        throw UsageError("--plugin: " + reason +
                         (misses ? "; build it against this version of transpool and its LibTorch" : ""));
      }
    } catch (const std::logic_error& error) {
      throw UsageError("--plugin: " + file + ": " + error.what());
    }
  }
}

}  // namespace transpool::cli
