#include "runners/data/text_file.h"

#include <boost/iostreams/filter/gzip.hpp>
#include <boost/iostreams/filter/lzma.hpp>
#include <boost/iostreams/filtering_stream.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <fstream>

namespace transpool {
namespace {

/// Names the nearest file of the folder; the folder's whole list only where it is short, for it may hold thousands.
[[noreturn]] void missing(const std::filesystem::path& file) {
  const auto folder = file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
  std::error_code unreadable;
  std::vector<std::string> beside;
  for (const auto& entry : std::filesystem::directory_iterator(folder, unreadable))
    beside.push_back(entry.path().filename().string());
  const Where where(file.string());
  if (unreadable) where.fail("is not there, nor can its folder be read");
  const auto nearest = nearest_name(file.filename().string(), beside);
  std::string message = "is not there";
  if (!nearest.empty()) message += fmt::format("; did you mean \"{}\"?", (file.parent_path() / nearest).string());
  std::sort(beside.begin(), beside.end());
  if (!beside.empty() && beside.size() <= 12) message += "; beside it: " + join(beside);
  where.fail(message);
}

}  // namespace

void for_lines(const std::filesystem::path& file,
               const std::function<bool(const std::string& line, std::int64_t number)>& take) {
  namespace io = boost::iostreams;
  if (!std::filesystem::exists(file)) missing(file);
  std::ifstream raw(file, std::ios::binary);
  if (!raw || std::filesystem::is_directory(file))
    Where(file.string()).fail("cannot be read; allowed: a file of lines, plain, .gz or .xz");
  char magic[6] = {};
  raw.read(magic, sizeof magic);
  raw.clear();
  raw.seekg(0);
  io::filtering_istream stream;
  if (magic[0] == '\x1f' && magic[1] == '\x8b') stream.push(io::gzip_decompressor());
  else if (std::string(magic + 1, 4) == "7zXZ") stream.push(io::lzma_decompressor());
  stream.push(raw);
  std::int64_t number = 0;
  try {
    stream.exceptions(std::ios::badbit);
    for (std::string line; std::getline(stream, line);)
      if (!take(line, ++number)) return;
  } catch (const std::ios_base::failure& error) {
    Where(fmt::format("{}:{}", file.string(), number + 1))
        .fail(fmt::format("the compressed stream is damaged or cut off ({})", error.what()));
  }
}

}  // namespace transpool
