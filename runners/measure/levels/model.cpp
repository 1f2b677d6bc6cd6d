#include "models/generation.h"
#include "runners/measure/device.h"
#include "runners/measure/model_cell.h"

namespace transpool {
namespace {

Seq2Seq build(const Cell& cell, Record& record) {
  at::manual_seed(static_cast<std::uint64_t>(cell.seed));
  const auto device = device_from_name(cell.device);
  const auto config = model_config(cell, cell.values.integer("vocabulary"));
  Seq2Seq model(config);
  model->to(device, parameter_dtype(dtype_from_name(cell.values.text("dtype"))));
  record.details["model"] = to_json(config);
  record.details["parameters"] = model->parameter_count();
  record.details["backend"] = encoder_backends(config.encoder, device, cell.values.integer("source_length"),
                                               dtype_from_name(cell.values.text("dtype")));
  return model;
}

bool random_lengths(const Cell& cell) { return cell.values.text("lengths") == "random"; }

std::shared_ptr<AdamW> adamw(Seq2Seq& model) {
  return std::make_shared<AdamW>(model->parameters(), torch::optim::AdamWOptions(1e-4));
}

/// The encoder alone, embeddings included, or the whole model under teacher forcing; without an optimiser.
void measure_passes(const Cell& cell, Record& record, bool whole) {
  auto model = build(cell, record);
  const auto& values = cell.values;
  const auto device = device_from_name(cell.device);
  const auto dtype = dtype_from_name(values.text("dtype"));
  const bool backward = values.text("pass") == "forward+backward";
  const auto batch = values.integer("batch");
  const auto source = values.integer("source_length");
  const auto target = whole ? values.integer("target_length") : 1;
  auto tokens = std::make_shared<TokenBatch>();
  const auto draw = [=, &cell] {
    *tokens = draw_tokens(batch, source, target, model->config().vocabulary, random_lengths(cell), device);
  };
  draw();
  Workload workload;
  workload.what = "one " + values.text("pass") + (whole ? " pass of the model" : " pass of the encoder");
  workload.redraw = draw;
  workload.run = [=]() mutable {
    const at::AutoGradMode gradients(backward);
    model->train(backward);
    model->zero_grad();
    torch::Tensor out;
    {
      const Precision precision(device, dtype);
      if (whole) out = token_loss(model->forward(tokens->source, tokens->lengths, tokens->target_in), tokens->target_out);
      else out = model->encode(tokens->source, tokens->lengths).memory.to(parameter_dtype(dtype)).square().mean();
    }
    if (backward) out.backward();
  };
  workload.cost = whole ? model_cost(model->config(), batch, source, target, random_lengths(cell), dtype, device.type())
                        : encoder_cost(model->config().encoder, batch, source, random_lengths(cell), dtype, device.type());
  workload.backward = backward;
  measure_workload(cell, workload, record);
}

const RegisterLevel encoder_level({"encoder", "the encoder alone on random tokens", check_model_cell, estimate_model_cell,
                                   [](const Cell& cell, Record& record) { measure_passes(cell, record, false); }});

const RegisterLevel model_level({"model", "the whole model on random tokens, teacher-forced", check_model_cell,
                                 estimate_model_cell,
                                 [](const Cell& cell, Record& record) { measure_passes(cell, record, true); }});

const RegisterLevel training_level({"training", "training steps on random tokens", check_model_cell, estimate_model_cell,
                                    [](const Cell& cell, Record& record) {
                                      auto model = build(cell, record);
                                      auto workload = training_workload(cell, model, adamw(model), random_lengths(cell));
                                      measure_workload(cell, workload, record);
                                    }});

const RegisterLevel generation_level({"generation", "encoding and greedy generation on random tokens", check_model_cell,
                                      estimate_model_cell, [](const Cell& cell, Record& record) {
                                        auto model = build(cell, record);
                                        auto workload = generation_workload(cell, model, random_lengths(cell));
                                        measure_workload(cell, workload, record);
                                      }});

}  // namespace
}  // namespace transpool
