#include "runners/measure/ceilings.h"
#include "runners/measure/cuda_graph.h"
#include "runners/measure/device.h"
#include "runners/measure/flop_counter.h"
#include "runners/measure/level.h"
#include "runners/measure/memory.h"
#include "runners/measure/timing.h"

#include <c10/util/Exception.h>
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>

namespace transpool {
namespace {

std::map<std::string, Level>& levels() {
  static std::map<std::string, Level> all;
  return all;
}

bool asks_for(const Cell& cell, const std::string& measure) {
  return std::find(cell.measure.begin(), cell.measure.end(), measure) != cell.measure.end();
}

void measure_time(const Cell& cell, Workload& workload, const at::Device& device, Record& record) {
  const auto is_set = [&](const char* name) { return cell.values.json().contains(name) && cell.values.flag(name); };
  const bool graph = is_set("timing.graph");
  auto options = timing_options(cell.values);
  options.head_start = is_set("timing.head_start");
  const auto timing = graph ? time_runs(captured(workload.run, device), {}, device, options)
                            : time_runs(workload.run, workload.redraw, device, options);
  Summary summary{.name = workload.prefix + "time", .unit = "ms", .value = timing.median, .higher_is_better = false};
  summary.interval = {timing.low, timing.high};
  summary.samples = timing.samples;
  summary.statistic = "median";
  summary.meaning = graph ? workload.what + ", replayed as one CUDA graph" : workload.what;
  record.summaries.push_back(summary);
  record.details[workload.prefix + "timing"] = {{"relative_error", timing.relative_error},
                                                {"capped", timing.capped},
                                                {"graph", graph},
                                                {"head_start", options.head_start},
                                                {"host_bound", timing.host_bound}};
}

void measure_memory(Workload& workload, const at::Device& device, Record& record) {
  workload.run();
  const auto use = transpool::measure_memory(
      [&] {
        if (workload.results) return workload.results();
        workload.run();
        return std::vector<at::Tensor>();
      },
      device);
  constexpr double mib = 1024.0 * 1024.0;
  record.summaries.push_back({.name = workload.prefix + "peak_memory",
                              .unit = "MiB",
                              .value = use.peak / mib,
                              .statistic = "max",
                              .meaning = "peak of allocated tensor bytes, " + workload.what});
  record.details[workload.prefix + "memory"] = {{"peak_bytes", use.peak},
                                                {"delta_bytes", use.delta},
                                                {"peak_reserved_bytes", use.peak_reserved},
                                                {"peak_rss_bytes", use.peak_rss}};
  if (!workload.results) return;
  record.summaries.push_back({.name = workload.prefix + "workspace",
                              .unit = "MiB",
                              .value = use.workspace / mib,
                              .statistic = "max",
                              .meaning = "peak of allocated tensor bytes beyond inputs and results, " + workload.what});
  record.details[workload.prefix + "memory"]["workspace_bytes"] = use.workspace;
}

/// How many kernels, and how many copies and fills, the device is given in one pass; null where it cannot be captured.
void measure_launches(Workload& workload, const at::Device& device, Record& record) {
  const auto found = count_launches([&] { workload.results(); }, device);
  constexpr double unknown = std::numeric_limits<double>::quiet_NaN();
  const bool counted = found.reason.empty();
  const auto kernels = static_cast<double>(found.kernels);
  const auto transfers = static_cast<double>(found.copies + found.fills);
  record.summaries.push_back({.name = workload.prefix + "kernel_launches",
                              .unit = "1",
                              .value = counted ? kernels : unknown,
                              .meaning = "kernels launched, " + workload.what});
  record.summaries.push_back({.name = workload.prefix + "memory_launches",
                              .unit = "1",
                              .value = counted ? transfers : unknown,
                              .meaning = "copies and fills launched beside kernels, " + workload.what});
  record.details[workload.prefix + "launches"] =
      counted ? Json{{"kernels", found.kernels}, {"copies", found.copies}, {"fills", found.fills}, {"others", found.others}}
              : Json{{"reason", found.reason}};
}

/// The least time by what the machine was measured to reach, and the share of it that the median is.
void measure_roofline(const Workload& workload, const at::Device& device, Record& record) {
  const auto* time = find_summary(record, workload.prefix + "time");
  const auto reached = measured_ceilings(device, workload.dtype);
  const auto& cost = workload.cost;
  const double flops = cost.flops + (workload.backward ? cost.backward_flops : 0);
  const double bytes = workload.bytes(record);
  const double copy = bytes / reached.copy_bytes_per_second * 1e3;
  const double product = flops / reached.product_flops_per_second * 1e3;
  const double bound = std::max(copy, product);
  Summary share{.name = workload.prefix + "bound_share", .unit = "%", .value = 100 * bound / time->value};
  share.higher_is_better = true;
  if (const auto& interval = time->interval)
    share.interval = {100 * bound / interval->second, 100 * bound / interval->first};
  for (const auto sample : time->samples) share.samples.push_back(100 * bound / sample);
  share.statistic = "median";
  share.meaning = "measured bound over time: bytes by the copy bandwidth or FLOPs by the matrix product, " + workload.what;
  record.summaries.push_back(share);
  record.details[workload.prefix + "roofline"] = {{"bytes", bytes},
                                                  {"flops", flops},
                                                  {"copy_bytes_per_second", reached.copy_bytes_per_second},
                                                  {"product_flops_per_second", reached.product_flops_per_second},
                                                  {"bound_ms", bound},
                                                  {"bound_by", copy >= product ? "copy" : "matrix product"}};
}

/// Declared against observed, with the difference split by cause; what is left over is `unexplained`.
void measure_flops(Workload& workload, Record& record) {
  const auto observed = count_flops(workload.run);
  const auto& cost = workload.cost;
  const double declared = cost.flops + (workload.backward ? cost.backward_flops : 0);
  Json causes = Json::object();
  double explained = 0;
  const auto name_cause = [&](const std::string& cause, double flops) {
    if (flops == 0) return;
    causes[cause] = causes.value(cause, 0.0) + flops;
    explained += flops;
  };
  for (const auto& [cause, flops] : cost.forward_differences) name_cause(cause, flops);
  if (workload.backward)
    for (const auto& [cause, flops] : cost.backward_differences) name_cause(cause, flops);
  name_cause("flash_recompute", observed.recomputed);
  name_cause("spared_by_structure", -observed.spared);
  const double left = observed.total - declared - explained;
  const double scale = std::max(std::abs(declared), 1.0);
  for (const auto& [name, value] : {std::pair{"flops_model", declared}, std::pair{"flops_executed", observed.total}})
    record.summaries.push_back(
        {.name = workload.prefix + name,
         .unit = "GFLOP",
         .value = value / 1e9,
         .meaning = std::string(name == std::string("flops_model") ? "declared by the cost model, "
                                                                   : "observed from the dispatched calls, ") +
                    workload.what});
  record.details[workload.prefix + "flops"] = {
      {"differences", causes}, {"unexplained", left}, {"unexplained_share", left / scale}, {"calls", observed.calls}};
}

std::string utc_now() {
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(now));
}

/// Runs `measure` and turns what it throws into a status and a reason.
void guard(Record& record, const std::function<void()>& measure) {
  const auto fail = [&](Status status, const std::string& reason) {
    record.status = status;
    record.reason = reason;
  };
  try {
    measure();
  } catch (const Incorrect& error) {
    fail(Status::incorrect, error.what());
  } catch (const Unsupported& error) {
    fail(Status::unsupported, error.what());
  } catch (const c10::OutOfMemoryError& error) {
    fail(Status::oom, error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    fail(Status::oom, "out of memory");
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    fail(text.find("can't allocate memory") != std::string::npos ? Status::oom : Status::failed, text);
  } catch (const std::exception& error) {
    fail(Status::failed, error.what());
  }
}

}  // namespace

RegisterLevel::RegisterLevel(Level level) { levels()[level.name] = std::move(level); }

const Level& find_level(const std::string& name) { return levels().at(name); }

std::string estimate_text(const Cell& cell) {
  const auto cost = find_level(cell.level).estimate(cell);
  return fmt::format("  about {:.3g} GFLOP and {:.3g} MiB of activations a pass", (cost.flops + cost.backward_flops) / 1e9,
                     cost.activation_bytes / (1024.0 * 1024.0));
}

void measure_workload(const Cell& cell, Workload& workload, Record& record) {
  const auto device = device_from_name(cell.device);
  if (workload.check) {
    const auto wrong = workload.check();
    record.details[workload.prefix + "checked"] = true;
    if (!wrong.empty()) throw Incorrect(wrong);
  }
  if (asks_for(cell, "time")) measure_time(cell, workload, device, record);
  if (asks_for(cell, "memory")) measure_memory(workload, device, record);
  if (asks_for(cell, "flops")) measure_flops(workload, record);
  if (workload.results && device.is_cuda()) measure_launches(workload, device, record);
  if (asks_for(cell, "roofline")) measure_roofline(workload, device, record);
}

Record measure_cell(const Cell& cell) {
  Record record;
  record.id = cell.id;
  record.axes = cell.axes;
  record.seed = cell.seed;
  record.baseline = cell.baseline;
  record.configuration = Json{{"level", cell.level}, {"device", cell.device}};
  record.configuration.update(cell.values.json());
  record.started = utc_now();
  const auto start = std::chrono::steady_clock::now();
  if (!cell.skip_reason.empty()) {
    record.status = Status::unsupported;
    record.reason = cell.skip_reason;
    return record;
  }
  guard(record, [&] { find_level(cell.level).measure(cell, record); });
  record.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return record;
}

}  // namespace transpool
