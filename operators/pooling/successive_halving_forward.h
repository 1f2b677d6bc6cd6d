#pragma once

#include "operators/pooling/successive_halving_cuda.h"

namespace transpool {

/// The tournament and the gather of `arguments` on the current CUDA stream. Where rows are long some play at a time, and x of
/// those before is read meanwhile on a second stream, for which the current one waits in the end. Throws c10::Error that
/// begins with `name`.
void successive_halving_forward(const SuccessiveHalvingArguments& arguments, const char* name);

}  // namespace transpool
