// Exact k-means in one dimension: the cut of sorted numbers into intervals of the least sum of squared distances.
#pragma once

#include <cstdint>
#include <vector>

namespace mindllm {

// Where each of `clusters` intervals of `values` (ascending, finite, at least as many as clusters) begins, none empty.
//
// Dynamic programming over the end of the last interval (Wang and Song, Ckmeans.1d.dp, R Journal 2011). The best start of
// the last interval does not move left as its end moves right, so each interval's ends are solved by halving:
// O(clusters * n log n) time, 4 bytes a value and cluster. Of equally good cuts the first is taken.
std::vector<int64_t> optimal_intervals(const double* values, int64_t count, int64_t clusters);

}  // namespace mindllm
