#include "runners/measure/check.h"
#include "runners/cli/command.h"
#include "runners/cli/plugin.h"
#include "runners/measure/device.h"

#include <torch/cuda.h>

#include <iostream>

namespace transpool::cli {
namespace {

namespace po = boost::program_options;

/// A name, or an object of name and options as an experiment writes it.
Json variant_from_text(const std::string& text, const std::string& argument) {
  if (!text.starts_with('{')) return text;
  auto json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) Where(argument).fail(text + " is not JSON; allowed: a name, or {\"name\": ..., options}");
  return json;
}

int run_check(const std::vector<std::string>& given) {
  po::options_description options("Options");
  options.add_options()                                                                                //
      ("kind", po::value<std::string>(), "pooling or attention")                                       //
      ("name", po::value<std::string>(), "a variant, or a JSON object of its name and options")        //
      ("against", po::value<std::string>(), "another variant (default: the variant's own reference)")  //
      ("device", po::value<std::string>(), "cpu or cuda (default: each that is there)")                //
      ("format", po::value<std::string>()->default_value("text"), "text or json")                      //
      ("plugin", po::value<std::vector<std::string>>()->default_value({}, ""), "shared library with further variants");
  const auto arguments = parse("check", options, {"kind", "name"}, given);
  if (arguments.help_printed) return done;
  if (!arguments.has("kind") || !arguments.has("name"))
    throw UsageError("check needs KIND NAME, for example pooling hard_topk; transpool list names the variants");
  load_plugins(arguments.get<std::vector<std::string>>("plugin"));
  std::vector<std::string> devices = {"cpu"};
  if (arguments.has("device")) devices = {arguments.get<std::string>("device")};
  else if (torch::cuda::is_available()) devices.emplace_back("cuda");
  for (const auto& device : devices) device_from_name(device);
  std::optional<Json> against;
  if (arguments.has("against")) against = variant_from_text(arguments.get<std::string>("against"), "--against");
  const auto& format = arguments.get<std::string>("format");
  print_check({}, format);  // an unknown format must not cost the passes
  const auto check = check_variant(arguments.get<std::string>("kind"),
                                   variant_from_text(arguments.get<std::string>("name"), "check"), against, devices);
  std::cout << print_check(check, format) << std::flush;
  return check.holds() ? done : found_problem;
}

const RegisterCommand command{
    {"check", "pooling|attention NAME [--against NAME] [--device cpu|cuda] [--format text|json] [--plugin FILE.so]...",
     "a variant against its reference over shapes, dtypes and devices; exit code 1 over tolerance", run_check}};

}  // namespace
}  // namespace transpool::cli
