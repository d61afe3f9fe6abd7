// The Python side of the token streams: permutations, mixtures, sources, and batches written to numpy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "batch_reader.hpp"
#include "bindings.hpp"
#include "document_index.hpp"
#include "mixture.hpp"
#include "permutation.hpp"
#include "sample_source.hpp"

namespace mindllm {

namespace {

namespace py = pybind11;
using Path = std::filesystem::path;
using Int64Array = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

// A copy, from an array that need not be aligned, and that other threads may write to.
std::vector<int64_t> to_vector(const Int64Array& array) {
    std::vector<int64_t> numbers(static_cast<size_t>(array.size()));
    if (!numbers.empty()) std::memcpy(numbers.data(), array.data(), numbers.size() * sizeof(int64_t));
    return numbers;
}

Int64Array permute(const Int64Array& positions, int64_t size, uint64_t key) {
    const KeyedPermutation permutation(size, key);
    Int64Array places(std::vector<py::ssize_t>(positions.shape(), positions.shape() + positions.ndim()));
    int64_t* out = places.mutable_data();
    const int64_t count = positions.size();
    // What is checked must be what is used: another thread may write to `positions`.
    std::memcpy(out, positions.data(), static_cast<size_t>(count) * sizeof(int64_t));
    for (int64_t i = 0; i < count; ++i) {
        if (out[i] < 0 || out[i] >= size) {
            throw py::index_error("there is no position " + std::to_string(out[i]) + " among " + std::to_string(size));
        }
    }
    const py::gil_scoped_release release;
    for (int64_t i = 0; i < count; ++i) out[i] = permutation(out[i]);
    return places;
}

uint64_t derive_key_of(const py::args& parts) {
    uint64_t key = 0;
    for (const py::handle part : parts) {
        // Only the lowest 64 bits count; numbers below 0 as two's complement.
        const uint64_t bits = PyLong_AsUnsignedLongLongMask(part.ptr());
        if (PyErr_Occurred()) throw py::error_already_set();
        key = mix(key ^ bits);
    }
    return key;
}

py::tuple locate(const Mixture& mixture, const Int64Array& samples) {
    const std::vector<int64_t> numbers = to_vector(samples);
    const int64_t count = samples.size();
    Int64Array sources(count), positions(count), seq_lens(count);
    int64_t *source = sources.mutable_data(), *position = positions.mutable_data(), *seq_len = seq_lens.mutable_data();
    for (int64_t i = 0; i < count; ++i) {
        const SampleAddress address = mixture.locate(numbers[static_cast<size_t>(i)]);
        source[i] = address.source;
        position[i] = address.position;
        seq_len[i] = address.seq_len;
    }
    return py::make_tuple(sources, positions, seq_lens);
}

// Stretches as int64[n, 4]: document, place in the document, place in the file, tokens.
Int64Array to_array(const std::vector<Stretch>& stretches) {
    Int64Array rows({static_cast<py::ssize_t>(stretches.size()), py::ssize_t{4}});
    int64_t* row = rows.mutable_data();
    for (const Stretch& stretch : stretches) {
        *row++ = stretch.document;
        *row++ = stretch.in_document;
        *row++ = stretch.start;
        *row++ = stretch.count;
    }
    return rows;
}

Int64Array lengths_of_group(const DocumentIndex& index, int64_t group) {
    if (group < 0 || group >= index.groups()) throw py::index_error("there is no group " + std::to_string(group));
    std::vector<int64_t> lengths;
    {
        const py::gil_scoped_release release;
        index.read_lengths_in_order(group, lengths);
    }
    return Int64Array(static_cast<py::ssize_t>(lengths.size()), lengths.data());
}

Int64Array find_stretches(const SampleSource& source, int64_t position, int64_t seq_len) {
    std::vector<Stretch> stretches;
    {
        const py::gil_scoped_release release;
        source.find(position, seq_len, stretches);
    }
    return to_array(stretches);
}

py::tuple find_sample(const BatchReader& reader, int64_t sample) {
    std::vector<Stretch> stretches;
    int64_t source = 0;
    {
        const py::gil_scoped_release release;
        source = reader.find(sample, stretches);
    }
    return py::make_tuple(source, to_array(stretches));
}

template <typename T>
T* writable(py::array& array, int64_t room, const char* name) {
    constexpr int kNeeded = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if (!array.dtype().equal(py::dtype::of<T>()) || array.ndim() != 1 || (array.flags() & kNeeded) != kNeeded ||
        array.size() != room) {
        throw py::type_error(std::string(name) + " must be a contiguous, aligned array of " + std::to_string(room) + " " +
                             py::str(py::dtype::of<T>()).cast<std::string>());
    }
    return static_cast<T*>(array.mutable_data());
}

BatchArrays batch_arrays(py::array& tokens, py::array& targets, py::array& positions, py::array& source_ids,
                         py::array& cu_seqlens) {
    const int64_t room = tokens.size();
    return {writable<int64_t>(tokens, room, "tokens"),         writable<int64_t>(targets, room, "targets"),
            writable<int64_t>(positions, room, "positions"),   writable<int64_t>(source_ids, room, "source_ids"),
            writable<int32_t>(cu_seqlens, room + 1, "cu_seqlens"), room};
}

int64_t read_batch(const BatchReader& reader, const Int64Array& samples, py::array tokens, py::array targets,
                   py::array positions, py::array source_ids, py::array cu_seqlens) {
    const BatchArrays out = batch_arrays(tokens, targets, positions, source_ids, cu_seqlens);
    const std::vector<int64_t> numbers = to_vector(samples);
    const py::gil_scoped_release release;
    return reader.read(numbers, out);
}

// A batch that threads are reading. It keeps the arrays alive, and waits for the threads before it lets go of them. (A
// forked child has none of the threads, so nothing to wait for.)
class PendingBatch {
  public:
    explicit PendingBatch(py::tuple arrays) : arrays_(std::move(arrays)), owner_(::getpid()) {}
    PendingBatch(const PendingBatch&) = delete;
    PendingBatch& operator=(const PendingBatch&) = delete;

    ~PendingBatch() {
        if (!result_.valid() || ::getpid() != owner_) return;
        const py::gil_scoped_release release;
        result_.wait();
    }

    void begin(ReadAhead& ahead, std::vector<int64_t> samples, const BatchArrays& out) {
        result_ = ahead.submit(std::move(samples), out);
    }

    int64_t wait() {
        if (::getpid() != owner_) throw std::runtime_error("the threads that read ahead are not in this forked process");
        if (!result_.valid()) throw std::runtime_error("the batch has been taken before");
        std::future<int64_t> result = std::move(result_);  // before another thread can ask for it as well
        const py::gil_scoped_release release;
        return result.get();
    }

  private:
    const py::tuple arrays_;
    const pid_t owner_;
    std::future<int64_t> result_;
};

std::unique_ptr<PendingBatch> submit(ReadAhead& ahead, const Int64Array& samples, py::array tokens, py::array targets,
                                     py::array positions, py::array source_ids, py::array cu_seqlens) {
    const BatchArrays out = batch_arrays(tokens, targets, positions, source_ids, cu_seqlens);
    // Made first: once the threads have begun, nothing may let go of the arrays.
    auto batch = std::make_unique<PendingBatch>(py::make_tuple(tokens, targets, positions, source_ids, cu_seqlens));
    batch->begin(ahead, to_vector(samples), out);
    return batch;
}

using SourceTuple =
    std::tuple<std::string, std::shared_ptr<TokenFileReader>, std::shared_ptr<TokenBytes>, std::shared_ptr<SampleSource>>;

std::shared_ptr<BatchReader> make_batch_reader(std::shared_ptr<Mixture> mixture,
                                               const std::vector<SourceTuple>& sources, int64_t vocab_size) {
    std::vector<BatchSource> batch_sources;
    for (const auto& [prefix, reader, bytes, samples] : sources) {
        if (!reader || !bytes) throw py::type_error(prefix + ": a source without its reader or its bytes");
        batch_sources.push_back({prefix, reader->type(), bytes, samples});
    }
    return std::make_shared<BatchReader>(std::move(mixture), std::move(batch_sources), vocab_size);
}

void bind_mixture(py::module_& module) {
    py::enum_<Order>(module, "Order")
        .value("shuffled", Order::kShuffled)
        .value("blocked", Order::kBlocked)
        .value("chunked", Order::kChunked);
    py::class_<BlockSpec>(module, "BlockSpec", "One block of a plan, for `Mixture`; see mindllm_engine.data.mixture.Block.")
        .def(py::init([](int64_t first_sample, int64_t seq_len, Order order, int64_t samples_per_chunk, uint64_t key,
                         std::vector<int64_t> quotas, std::vector<int64_t> firsts,
                         std::vector<std::vector<int64_t>> categories) {
                 return BlockSpec{first_sample,      seq_len,           order,
                                  samples_per_chunk, key,               std::move(quotas),
                                  std::move(firsts), std::move(categories)};
             }),
             py::kw_only(), py::arg("first_sample"), py::arg("seq_len"), py::arg("order"), py::arg("samples_per_chunk"),
             py::arg("key"), py::arg("quotas"), py::arg("firsts"), py::arg("categories"));
    py::class_<Mixture, std::shared_ptr<Mixture>>(module, "Mixture", "Which source, and where in it, is a global sample.")
        .def(py::init<std::vector<BlockSpec>, size_t, bool>(), py::arg("blocks"), py::arg("sources"),
             py::arg("by_token"),
             "`sources`: how many; `by_token`: positions are tokens of a source's stream, else numbers of its samples.\n"
             "IndexError for blocks that do not follow each other, or do not fit the sources.")
        .def_property_readonly("samples", &Mixture::samples)
        .def("locate", &locate, py::arg("samples"),
             "(sources, positions, seq_lens) of global samples int64[n], int64[n] each. IndexError beyond the plan.");
}

void bind_batches(py::module_& module) {
    py::class_<DocumentIndex>(module, "DocumentIndex", "The lengths of a source's documents, a group at a time.")
        .def(py::init([](const Path& index_path, const TokenFileReader& reader, int64_t group) {
                 if (group < 1) throw py::index_error("a group has one document at least");
                 const py::gil_scoped_release release;  // in a py::init, not around it: see bindings.hpp
                 return std::make_unique<DocumentIndex>(index_path.string(), reader, group);
             }),
             py::arg("index_path"), py::arg("reader"), py::arg("group"),
             "`group`: documents in each but the last. Reads the index once; ValueError for a damaged one.")
        .def_property_readonly("groups", &DocumentIndex::groups)
        .def("lengths", &lengths_of_group, py::arg("group"),
             "int64[documents of the group], in tokens, read from the file. ValueError if it is damaged there.");
    py::class_<SampleSource, std::shared_ptr<SampleSource>>(module, "SampleSource",
                                                            "The samples of one source, by position. Thread-safe.")
        .def("find", &find_stretches, py::arg("position"), py::arg("seq_len"),
             "The stretches of the sample at a position: int64[n, 4], each document, place in the document, place in\n"
             "the file, tokens. ValueError for a damaged index.")
        .def_property_readonly("addressing_bytes", &SampleSource::addressing_bytes, "Memory held to find samples.");
    py::class_<ContiguousSource, SampleSource, std::shared_ptr<ContiguousSource>>(
        module, "ContiguousSource", "A source as an endless stream of epochs, the documents of each in another order.")
        .def(py::init([](const Path& index_path, const TokenFileReader& reader, uint64_t key) {
                 const py::gil_scoped_release release;
                 auto index =
                     std::make_shared<DocumentIndex>(index_path.string(), reader, ContiguousSource::kGroup);
                 return std::make_shared<ContiguousSource>(std::move(index), key);
             }),
             py::arg("index_path"), py::arg("reader"), py::arg("key"),
             "Positions are tokens of the stream; `key` names the orders. ValueError for a damaged or empty index.");
    py::class_<PackedWindows, std::shared_ptr<PackedWindows>>(
        module, "PackedWindows", "The documents of a source packed best fit into samples of seq_len + 1 tokens.")
        .def(py::init([](const Path& index_path, const TokenFileReader& reader, int64_t seq_len) {
                 const py::gil_scoped_release release;
                 auto index = std::make_shared<DocumentIndex>(index_path.string(), reader, PackedWindows::kWindow);
                 return std::make_shared<PackedWindows>(std::move(index), seq_len);
             }),
             py::arg("index_path"), py::arg("reader"), py::arg("seq_len"),
             "Counts the samples: O(documents). ValueError for a damaged index.")
        .def_property_readonly("samples", &PackedWindows::samples, "Samples in an epoch.");
    py::class_<BestFitSource, SampleSource, std::shared_ptr<BestFitSource>>(module, "BestFitSource",
                                                                            "A source in samples of whole documents.")
        .def(py::init([](const std::vector<std::shared_ptr<PackedWindows>>& packings, uint64_t key) {
                 for (const auto& packing : packings) {
                     if (!packing) throw py::type_error("packings must be PackedWindows, not None");
                 }
                 return std::make_shared<BestFitSource>(
                     std::vector<std::shared_ptr<const PackedWindows>>(packings.begin(), packings.end()), key);
             }),
             py::arg("packings"), py::arg("key"),
             "Positions are numbers of samples; `key` names their order in each epoch. A packing for each seq_len.");
    py::class_<BatchReader, std::shared_ptr<BatchReader>>(module, "BatchReader",
                                                          "Micro-batches of a plan's samples. Thread-safe.")
        .def(py::init(&make_batch_reader), py::arg("mixture").none(false), py::arg("sources"), py::arg("vocab_size"),
             "`sources`: (prefix, TokenFileReader, TokenBytes, SampleSource) of each, in the order that gives them their ids;\n"
             "None for the samples of one that no block reads.")
        .def(
            "count_tokens",
            [](const BatchReader& reader, const Int64Array& samples) {
                return reader.count_tokens(to_vector(samples));
            },
            py::arg("samples"), "Tokens of a batch of these global samples.")
        .def("read", &read_batch, py::arg("samples"), py::arg("tokens").noconvert(), py::arg("targets").noconvert(),
             py::arg("positions").noconvert(), py::arg("source_ids").noconvert(), py::arg("cu_seqlens").noconvert(),
             "Write a batch: int64[T] each, int32[T + 1] of cu_seqlens, T = count_tokens(samples). Returns how many\n"
             "numbers of cu_seqlens are set. ValueError for damaged files and ids outside the vocabulary, OSError,\n"
             "MissingChunkError.")
        .def("find", &find_sample, py::arg("sample"),
             "(source id, stretches int64[n, 4]) of one global sample; see SampleSource.find.");
    py::class_<PendingBatch>(module, "PendingBatch", "A batch that threads are reading.")
        .def("wait", &PendingBatch::wait, "As BatchReader.read returns or raises, once it is done.");
    py::class_<ReadAhead>(module, "ReadAhead", "Threads that read batches before they are needed.")
        .def(py::init([](std::shared_ptr<BatchReader> reader, int threads) {
                 return std::make_unique<ReadAhead>(std::move(reader), threads);
             }),
             py::arg("reader").none(false), py::arg("threads"), "`threads`: 1 to 1024, IndexError else.")
        .def("submit", &submit, py::arg("samples"), py::arg("tokens").noconvert(), py::arg("targets").noconvert(),
             py::arg("positions").noconvert(), py::arg("source_ids").noconvert(), py::arg("cu_seqlens").noconvert(),
             "As BatchReader.read, later: a PendingBatch.");
}

}  // namespace

void bind_streams(py::module_& module) {
    module.def("permute", &permute, py::arg("positions"), py::arg("size"), py::arg("key"),
               "Where int64 positions in [0, size) go under the permutation named by `key`; the same shape.");
    module.def("derive_key", &derive_key_of, "A 64-bit key from a seed and whatever else tells one use from another.");
    bind_mixture(module);
    bind_batches(module);
}

}  // namespace mindllm
