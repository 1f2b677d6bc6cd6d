#pragma once

namespace transpool {

/// The dtypes that kernels take, for headers that know no tensors.
enum class Element { float64, float32, float16, bfloat16 };

}  // namespace transpool
