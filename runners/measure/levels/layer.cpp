#include "runners/measure/device.h"
#include "runners/measure/model_cell.h"

namespace transpool {
namespace {

/// One layer of a named encoder, its pooling included, on random rows.
struct LayerPass {
  Encoder encoder;
  at::Device device;
  at::ScalarType dtype;
  std::int64_t batch, length, width;
  bool backward, random_lengths;
  torch::Tensor x, cotangent;
  std::optional<torch::Tensor> lengths;

  void draw() {
    const auto options = at::TensorOptions().device(device).dtype(parameter_dtype(dtype));
    x = at::randn({batch, length, width}, options).set_requires_grad(backward);
    if (random_lengths) lengths = at::randint((length + 1) / 2, length + 1, {batch}, options.dtype(at::kLong));
  }

  torch::Tensor run() {
    const at::AutoGradMode gradients(backward);
    encoder->train(backward);
    encoder->zero_grad();
    x.mutable_grad() = torch::Tensor();
    torch::Tensor out;
    {
      const Precision precision(device, dtype);
      out = encoder->forward(x, lengths).memory;
    }
    if (!backward) return out;
    if (!cotangent.defined()) cotangent = at::randn_like(out);
    out.backward(cotangent);
    return out.detach();
  }
};

void measure_layer(const Cell& cell, Record& record) {
  at::manual_seed(static_cast<std::uint64_t>(cell.seed));
  const auto& values = cell.values;
  const auto device = device_from_name(cell.device);
  const auto dtype = dtype_from_name(values.text("dtype"));
  const auto config = model_config(cell, 4).encoder;
  auto pass = std::make_shared<LayerPass>(LayerPass{Encoder(config),
                                                    device,
                                                    dtype,
                                                    values.integer("batch"),
                                                    values.integer("source_length"),
                                                    values.integer("width"),
                                                    values.text("pass") == "forward+backward",
                                                    values.text("lengths") == "random",
                                                    {},
                                                    {},
                                                    {}});
  pass->encoder->to(device, parameter_dtype(dtype));
  pass->draw();
  record.details["encoder"] = to_json(config);
  record.details["backend"] = encoder_backends(config, device, pass->length, dtype);
  Workload workload;
  workload.what = "one " + values.text("pass") + " pass of one encoder layer";
  workload.redraw = [pass] { pass->draw(); };
  workload.run = [pass] { pass->run(); };
  workload.results = [pass] { return std::vector<at::Tensor>{pass->run()}; };
  workload.cost = encoder_cost(config, pass->batch, pass->length, pass->random_lengths, dtype, device.type());
  workload.backward = pass->backward;
  measure_workload(cell, workload, record);
}

const RegisterLevel registration({"layer", "one encoder layer with its pooling on random rows", check_model_cell,
                                  estimate_model_cell, measure_layer});

}  // namespace
}  // namespace transpool
