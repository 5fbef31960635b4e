#include "scheduler/states.h"

#include <algorithm>
#include <bit>

namespace muster::scheduler {
namespace {

constexpr std::int64_t kCpuMax = 1 << 30;
constexpr std::int32_t kPoints = 1'024;

// Devices that are partly used, with one of them changed; whole ones go to `gpus`.
void give(Condition& c, std::int32_t from, std::int32_t to) {
  auto* begin = c.shares.free.data();
  auto* end = begin + c.shares.n;
  if (from == kWholeGpu) {
    --c.gpus;
  } else {
    auto* found = std::find(begin, end, static_cast<std::int16_t>(from));
    std::move(found + 1, end, found);
    --c.shares.n, --end;
    *end = 0;
  }
  if (to <= 0) return;
  if (to >= kWholeGpu) {
    ++c.gpus;
  } else if (c.shares.n < kDevicesScored) {
    auto* at = std::upper_bound(begin, end, static_cast<std::int16_t>(to));
    std::move_backward(at, end, end + 1);
    *at = static_cast<std::int16_t>(to);
    ++c.shares.n;
  }
}

}  // namespace

std::int32_t level_of(std::int64_t cpu_milli) {
  const auto cpu = static_cast<std::uint32_t>(std::clamp<std::int64_t>(cpu_milli, 0, kCpuMax));
  const int spare = std::bit_width(cpu) - 7;
  return static_cast<std::int32_t>(spare <= 0 ? cpu : cpu >> spare << spare);
}

std::uint64_t Condition::hash() const {
  std::uint64_t h = hash_with(std::uint64_t{model} << 32 | static_cast<std::uint32_t>(gpus) << 1 | (whole ? 1U : 0U),
                              static_cast<std::uint64_t>(cpu));
  for (std::int32_t i = 0; i < shares.n; ++i)
    h = hash_with(h, static_cast<std::uint64_t>(shares.free[static_cast<std::size_t>(i)]));
  return h;
}

bool States::use(std::uint32_t model) {
  const bool fresh = (used_ >> model & 1U) == 0;
  used_ |= 1U << model;
  return fresh;
}

void States::value(Book& book, std::uint32_t state, const Packing& packing) {
  const Condition& c = book.items[state];
  book.with_gpu[state] = packing.before(c.model, c.gpus, c.shares, c.cpu, true);
  book.without[state] = packing.before(c.model, c.gpus, c.shares, c.cpu, false);
}

std::uint32_t States::acquire(const Condition& condition, const Packing& packing) {
  Book& book = books_[condition.model];
  const std::uint64_t hash = condition.hash();
  const std::uint32_t found = book.index.find(hash, [&](std::uint32_t i) { return book.items[i] == condition; });
  if (found != kNone) return found;
  const auto state = static_cast<std::uint32_t>(book.items.size());
  book.items.push_back(condition);
  if (state % kRowBlock == 0)
    for (auto* column : {&book.cpu, &book.gpus, &book.with_gpu, &book.without}) column->resize(state + kRowBlock, -1);
  const bool odd = condition.shares.n > 0;
  book.cpu[state] = odd ? -1 : condition.cpu;
  book.gpus[state] = condition.gpus;
  if (odd) book.odd.push_back(state);
  book.index.insert(hash, state);
  value(book, state, packing);
  return state;
}

void States::value_all(const Packing& packing) {
  for (Book& book : books_)
    for (std::uint32_t i = 0; i < book.items.size(); ++i) value(book, i, packing);
}

std::int32_t States::score(std::uint32_t model, std::uint32_t state, const Load& load, const Packing& packing) const {
  const Book& book = books_[model];
  const Condition& c = book.items[state];
  if (load.whole_machine) {
    // It costs what was of use on it: idle GPUs that were not lost already, and its CPU.
    if (!c.whole || c.cpu < level_of(load.cpu) || c.gpus < load.gpus) return kNever;
    const bool with_gpu = c.model != kNoGpu;
    return (with_gpu ? book.with_gpu : book.without)[state] - packing.after(c.model, c.gpus, c.shares, c.cpu, false) -
           c.gpus * kWholeGpu * kPoints;
  }
  if (c.cpu < level_of(load.cpu)) return kNever;
  const std::int32_t cpu = std::max(0, c.cpu - load.cpu);
  if (load.share == 0) {
    if (c.gpus < load.gpus) return kNever;
    const bool with_gpu = load.gpus > 0;
    return (with_gpu ? book.with_gpu : book.without)[state] -
           packing.after(c.model, c.gpus - load.gpus, c.shares, cpu, with_gpu);
  }
  std::int32_t best = kNever;
  const auto consider = [&](std::int32_t free) {
    if (free >= load.share) best = std::max(best, score_share(c, free, load, packing));
  };
  if (c.gpus > 0) consider(kWholeGpu);
  for (std::int32_t i = 0; i < c.shares.n; ++i)
    if (i == 0 || c.shares.free[static_cast<std::size_t>(i)] != c.shares.free[static_cast<std::size_t>(i - 1)])
      consider(c.shares.free[static_cast<std::size_t>(i)]);
  return best;
}

std::int32_t States::score_share(const Condition& now, std::int32_t free, const Load& load, const Packing& packing) {
  Condition then = now;
  give(then, free, free - load.share);
  return packing.before(now.model, now.gpus, now.shares, now.cpu, true) -
         packing.after(then.model, then.gpus, then.shares, std::max(0, now.cpu - load.cpu), true);
}

void States::scores(std::uint32_t model, const Load& load, const Packing& packing,
                    const std::vector<std::uint64_t>& live, const Kernels& kernels, std::vector<std::int32_t>& out,
                    std::vector<std::int32_t>& block_max) const {
  const Book& book = books_[model];
  const auto n = static_cast<std::uint32_t>(book.items.size());
  const std::uint32_t padded = (n + kRowBlock - 1) / kRowBlock * kRowBlock;
  out.resize(padded), block_max.resize(padded / kRowBlock);
  if (!load.whole_machine && load.share == 0) {
    const bool with_gpu = load.gpus > 0;
    kernels.fill_row({(with_gpu ? book.with_gpu : book.without).data(), book.cpu.data(), book.gpus.data(),
                      packing.table(model, with_gpu), padded, load.cpu, level_of(load.cpu), load.gpus},
                     out.data());
    for (const std::uint32_t state : book.odd)
      if ((live[state / kRowBlock] >> (state % kRowBlock) & 1U) != 0) out[state] = score(model, state, load, packing);
  } else {
    std::fill(out.begin(), out.end(), kNever);
    for (std::uint32_t b = 0; b < live.size() && b < block_max.size(); ++b)
      for (std::uint64_t bits = live[b]; bits != 0; bits &= bits - 1) {
        const std::uint32_t state = b * kRowBlock + static_cast<std::uint32_t>(std::countr_zero(bits));
        out[state] = score(model, state, load, packing);
      }
  }
  kernels.mask_row(out.data(), live.data(), padded, out.data(), block_max.data());
}

}  // namespace muster::scheduler
