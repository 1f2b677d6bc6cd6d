#pragma once

#include <fmt/format.h>
#include <torch/torch.h>
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>
