#include "optimal_intervals.hpp"

#include <algorithm>
#include <limits>

namespace mindllm {

namespace {

// The sum of squared distances from the mean of any interval, from running sums. The values are taken from the mean of
// all, or the squares would swallow the distances.
class IntervalCost {
  public:
    IntervalCost(const double* values, int64_t count) : sums_(count + 1), squares_(count + 1) {
        long double total = 0;
        for (int64_t i = 0; i < count; ++i) total += values[i];
        const long double mean = total / count;
        long double sum = 0, square = 0;
        for (int64_t i = 0; i < count; ++i) {
            const long double value = values[i] - mean;
            sums_[i + 1] = static_cast<double>(sum += value);
            squares_[i + 1] = static_cast<double>(square += value * value);
        }
    }

    double operator()(int64_t first, int64_t end) const {
        const double sum = sums_[end] - sums_[first];
        return std::max(0.0, squares_[end] - squares_[first] - sum * sum / static_cast<double>(end - first));
    }

  private:
    std::vector<double> sums_, squares_;
};

// One more interval: for ends [low, high] the least cost and the start of the last interval, which lies in
// [first, last].
struct Layer {
    const IntervalCost& cost;
    const std::vector<double>& before;  // the least cost of one interval fewer, by end
    std::vector<double>& best;
    int32_t* starts;

    void solve(int64_t low, int64_t high, int64_t first, int64_t last) const {
        if (low > high) return;
        const int64_t middle = low + (high - low) / 2;
        double least = std::numeric_limits<double>::infinity();
        int64_t start = first;
        for (int64_t candidate = first; candidate <= std::min(last, middle - 1); ++candidate) {
            const double found = before[candidate] + cost(candidate, middle);
            if (found < least) {
                least = found;
                start = candidate;
            }
        }
        best[middle] = least;
        starts[middle] = static_cast<int32_t>(start);
        solve(low, middle - 1, first, start);
        solve(middle + 1, high, start, last);
    }
};

}  // namespace

std::vector<int64_t> optimal_intervals(const double* values, int64_t count, int64_t clusters) {
    const IntervalCost cost(values, count);
    std::vector<double> before(count + 1), best(count + 1);
    for (int64_t end = 1; end <= count; ++end) before[end] = cost(0, end);
    std::vector<int32_t> starts(static_cast<size_t>(clusters) * (count + 1));
    for (int64_t interval = 1; interval < clusters; ++interval) {
        // The last interval needs only the end of all values, the others leave a value for each that follows.
        const int64_t highest = count - (clusters - 1 - interval);
        const int64_t lowest = interval + 1 < clusters ? interval + 1 : highest;
        const Layer layer{cost, before, best, starts.data() + interval * (count + 1)};
        layer.solve(lowest, highest, interval, highest - 1);
        before.swap(best);
    }
    std::vector<int64_t> begins(clusters);
    int64_t end = count;
    for (int64_t interval = clusters - 1; interval > 0; --interval) {
        end = starts[interval * (count + 1) + end];
        begins[interval] = end;
    }
    return begins;
}

}  // namespace mindllm
