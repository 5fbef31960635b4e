#pragma once
// The packing value: how useful what stays free on a machine is for the work that is expected. A task goes where value
// before minus value after is largest. Unit of every value: 1/1024 of a milli-GPU made useless ("points").
//
//   loss(after) = F + B + S (tasks with a GPU)   or   F + B + I (tasks without)
//   F  fragmentation: idle GPU share that a task of the expected workload cannot use, averaged over its shapes (Weng et
//      al., "Beware of Fragmentation", USENIX ATC'23; here the workload is learned from the tasks seen so far).
//   S  stranding: kStrand x max(0, idle GPU - idle CPU x r), r = a little more than the expected GPU per CPU. F sees a
//      lack of CPU only once a whole shape no longer fits; this sees it coming.
//   B  best fit: what stays idle, lightly weighted. F is flat over large regions; of equals take the fullest machine.
//   I  idle GPUs: work without a GPU stays off machines with free ones.
//
// All of it depends on a machine only by model, free whole GPUs, free shares and free CPU, in steps of 256 milli-CPU:
// for machines without shares it is one look into a table. Tables stand until learn() is called again. Pure integers;
// single-threaded.
#include <array>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "scheduler/kernels.h"
#include "scheduler/workload.h"

namespace muster::scheduler {

struct Shares {  // free milli-GPU of devices that are partly used, each in 1..999, rising
  std::array<std::int16_t, kDevicesScored> free{};
  std::int32_t n = 0;
  bool operator==(const Shares&) const = default;
};

class Packing {
 public:
  Packing();
  // `used`: the models that machines have; only these get tables.
  void learn(const std::vector<std::pair<std::int32_t, Task>>& expected, std::uint32_t used);

  // What is lost on a machine in this condition: before a placement (without B and I) and after one.
  std::int32_t before(std::uint32_t model, std::int32_t gpus, const Shares& shares, std::int32_t cpu,
                      bool with_gpu) const;
  std::int32_t after(std::uint32_t model, std::int32_t gpus, const Shares& shares, std::int32_t cpu,
                     bool with_gpu) const;
  // after() of machines without shares: [gpus][CPU steps], gpus up to kDevicesScored.
  const std::int32_t* table(std::uint32_t model, bool with_gpu) const {
    return tables_[model * 2 + (with_gpu ? 1U : 0U)].data();
  }

 private:
  static constexpr std::size_t kTable = (kDevicesScored + 1) * kCpuSteps;
  // Expected tasks of one form, by CPU step: the weight (16 bits) of those that ask for at most so much.
  struct Form {
    std::int32_t devices = 0, share = 0;
    std::vector<std::int32_t> weight;  // [CPU steps]
  };
  std::int64_t fragmentation(std::uint32_t model, std::int32_t gpus, const Shares& shares, std::int32_t step) const;
  std::int32_t stranded(std::int32_t idle, std::int32_t step) const;
  std::int64_t loss(std::uint32_t model, std::int32_t gpus, const Shares& shares, std::int32_t step,
                    bool with_gpu) const;
  static std::int64_t best_fit(std::int32_t idle, std::int32_t step);

  std::array<std::vector<Form>, kModels> forms_;
  std::int64_t weight_ = 0;
  std::vector<std::int32_t> usable_;  // [CPU steps]: milli-GPU that so much CPU is good for
  std::array<std::vector<std::int32_t>, std::size_t{kModels} * 2>
      tables_;  // of used models, [with GPU][gpus][CPU steps]
};

}  // namespace muster::scheduler
