// The Python side of the packing: the packer itself, whose calls take turns, and all pieces at once as flat arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <mutex>
#include <vector>

#include "bindings.hpp"
#include "packing.hpp"

namespace mindllm {

namespace {

namespace py = pybind11;
using Int64Array = py::array_t<int64_t>;

// A contiguous array of lengths. Other threads may write to it while the packer reads it: that changes what is packed
// and no more.
class Lengths {
  public:
    explicit Lengths(const py::array& lengths) {
        const char kind = lengths.dtype().kind();
        if (lengths.ndim() != 1 || (kind != 'i' && kind != 'u')) {
            throw py::type_error("lengths must be a one-dimensional array of integers");
        }
        array_ = py::array_t<int64_t, py::array::c_style | py::array::forcecast>::ensure(lengths);
        if (!array_) throw py::error_already_set();
        data = array_.data();
        count = array_.size();
    }

    const int64_t* data;
    int64_t count;

  private:
    Int64Array array_;
};

class SharedPacker {
  private:
    // Declared first: its result type is deduced.
    template <typename Call>
    auto in_turn(Call call) {
        const py::gil_scoped_release release;  // first: who waits for its turn must not hold the GIL
        const std::lock_guard<std::mutex> lock(mutex_);
        return call(packer_);
    }

  public:
    void pack(const py::array& lengths, int64_t capacity) {
        const Lengths read(lengths);
        in_turn([&](BestFitPacker& packer) { packer.pack(read.data, read.count, capacity); });
    }

    int64_t count_bins(const py::array& lengths, int64_t capacity) {
        const Lengths read(lengths);
        return in_turn([&](BestFitPacker& packer) { return packer.count_bins(read.data, read.count, capacity); });
    }

    int64_t bins() {
        return in_turn([](const BestFitPacker& packer) { return packer.bins(); });
    }

    py::list pieces(int64_t bin) {
        const std::vector<Piece> pieces = in_turn([bin](const BestFitPacker& packer) {
            std::vector<Piece> found;
            packer.pieces(bin, found);
            return found;
        });
        py::list list;
        for (const Piece& piece : pieces) list.append(py::make_tuple(piece.document, piece.start, piece.count));
        return list;
    }

  private:
    std::mutex mutex_;
    BestFitPacker packer_;
};

py::tuple pack_best_fit(const py::array& lengths, int64_t capacity) {
    const Lengths read(lengths);
    BestFitPacker packer;
    {
        const py::gil_scoped_release release;
        packer.pack(read.data, read.count, capacity);
    }
    Int64Array documents(packer.pieces()), starts(packer.pieces()), counts(packer.pieces());
    Int64Array bin_starts(packer.bins() + 1);
    int64_t *document = documents.mutable_data(), *start = starts.mutable_data(), *count = counts.mutable_data();
    int64_t* bin_start = bin_starts.mutable_data();
    {
        const py::gil_scoped_release release;
        std::vector<Piece> pieces;
        *bin_start = 0;
        for (int64_t bin = 0; bin < packer.bins(); ++bin) {
            packer.pieces(bin, pieces);
            for (const Piece& piece : pieces) {
                *document++ = piece.document;
                *start++ = piece.start;
                *count++ = piece.count;
            }
            bin_start[bin + 1] = bin_start[bin] + static_cast<int64_t>(pieces.size());
        }
    }
    return py::make_tuple(documents, starts, counts, bin_starts);
}

}  // namespace

void bind_packing(py::module_& module) {
    py::class_<SharedPacker>(
        module, "BestFitPacker",
        "Best-fit decreasing packing of documents into bins of `capacity` tokens (csrc/packing.hpp has the rules).\n\n"
        "Keeps its memory from call to call, and the last packing until the next call. Thread-safe: calls take turns.\n"
        "ValueError for a negative length, or a capacity or a number of documents that is out of range.")
        .def(py::init<>())
        .def("pack", &SharedPacker::pack, py::arg("lengths"), py::arg("capacity"),
             "Pack documents of `lengths` tokens: integers[documents].")
        .def("count_bins", &SharedPacker::count_bins, py::arg("lengths"), py::arg("capacity"),
             "How many bins `pack` would make, several times faster. Leaves no bins.")
        .def_property_readonly("bins", &SharedPacker::bins)
        .def("pieces", &SharedPacker::pieces, py::arg("bin"),
             "A bin's pieces in document order, as (document, start, count) in tokens. IndexError for another bin.");
    module.def("pack_best_fit", &pack_best_fit, py::arg("lengths"), py::arg("capacity"),
               "All pieces of all bins: documents, starts, counts: int64[pieces], and bin_starts: int64[bins + 1].");
}

}  // namespace mindllm
