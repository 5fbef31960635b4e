#include "store/fault_vfs.h"

#include <signal.h>
#include <sqlite3.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <new>

#include "base/check.h"

namespace muster::store {
namespace {

constexpr std::size_t kSector = 512;

sqlite3_vfs* system_vfs() {
  static sqlite3_vfs* vfs = sqlite3_vfs_find(nullptr);
  return vfs;
}

// SQLite allocates szOsFile bytes; the system's file object follows ours.
struct ShimFile {
  sqlite3_file base;
  std::string* path;  // null: a temporary file, not tracked
  sqlite3_file* real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};
ShimFile* shim(sqlite3_file* file) {
  return reinterpret_cast<ShimFile*>(file);
}
const sqlite3_io_methods* real_methods(sqlite3_file* file) {
  return shim(file)->real()->pMethods;
}
sqlite3_file* real(sqlite3_file* file) {
  return shim(file)->real();
}

int shim_close(sqlite3_file* file) {
  delete shim(file)->path;
  return real_methods(file)->xClose(real(file));
}
int shim_read(sqlite3_file* file, void* data, int size, sqlite3_int64 at) {
  if (FaultVfs::instance().crashed()) return SQLITE_IOERR_READ;
  return real_methods(file)->xRead(real(file), data, size, at);
}
int shim_write(sqlite3_file* file, const void* data, int size, sqlite3_int64 at) {
  if (shim(file)->path != nullptr) {
    const auto* bytes = static_cast<const std::uint8_t*>(data);
    const int rc = FaultVfs::instance().before_write(
        *shim(file)->path, {static_cast<std::uint64_t>(at), Bytes(bytes, bytes + size), false});
    if (rc != SQLITE_OK) return rc;
  }
  return real_methods(file)->xWrite(real(file), data, size, at);
}
int shim_truncate(sqlite3_file* file, sqlite3_int64 size) {
  if (shim(file)->path != nullptr) {
    const int rc = FaultVfs::instance().before_write(*shim(file)->path, {static_cast<std::uint64_t>(size), {}, true});
    if (rc != SQLITE_OK) return rc;
  }
  return real_methods(file)->xTruncate(real(file), size);
}
int shim_sync(sqlite3_file* file, int) {
  // The real sync is left out: this process does not lose power, and the tests run far faster without it.
  return shim(file)->path == nullptr ? SQLITE_OK : FaultVfs::instance().before_sync(*shim(file)->path);
}
int shim_size(sqlite3_file* file, sqlite3_int64* size) {
  return real_methods(file)->xFileSize(real(file), size);
}
int shim_lock(sqlite3_file* file, int level) {
  return real_methods(file)->xLock(real(file), level);
}
int shim_unlock(sqlite3_file* file, int level) {
  return real_methods(file)->xUnlock(real(file), level);
}
int shim_reserved(sqlite3_file* file, int* out) {
  return real_methods(file)->xCheckReservedLock(real(file), out);
}
int shim_control(sqlite3_file* file, int op, void* argument) {
  if (op == SQLITE_FCNTL_SIZE_HINT || op == SQLITE_FCNTL_CHUNK_SIZE) return SQLITE_OK;  // no write behind our back
  return real_methods(file)->xFileControl(real(file), op, argument);
}
int shim_sector(sqlite3_file*) {
  return kSector;
}
int shim_traits(sqlite3_file*) {
  return 0;
}  // promises nothing: no atomic writes, no safe append, no power-safe overwrite
int shim_shm_map(sqlite3_file* file, int page, int size, int extend, void volatile** out) {
  return real_methods(file)->xShmMap(real(file), page, size, extend, out);
}
int shim_shm_lock(sqlite3_file* file, int offset, int count, int flags) {
  return real_methods(file)->xShmLock(real(file), offset, count, flags);
}
void shim_shm_barrier(sqlite3_file* file) {
  real_methods(file)->xShmBarrier(real(file));
}
int shim_shm_unmap(sqlite3_file* file, int remove) {
  return real_methods(file)->xShmUnmap(real(file), remove);
}

const sqlite3_io_methods kMethods = {
    2,           shim_close,   shim_read,     shim_write,       shim_truncate,  shim_sync,
    shim_size,   shim_lock,    shim_unlock,   shim_reserved,    shim_control,   shim_sector,
    shim_traits, shim_shm_map, shim_shm_lock, shim_shm_barrier, shim_shm_unmap, nullptr,
    nullptr};

int vfs_open(sqlite3_vfs*, const char* name, sqlite3_file* file, int flags, int* out_flags) {
  ShimFile* ours = shim(file);
  ours->base.pMethods = nullptr;
  ours->path = nullptr;
  if (FaultVfs::instance().crashed()) return SQLITE_CANTOPEN;
  const int rc = system_vfs()->xOpen(system_vfs(), name, ours->real(), flags, out_flags);
  if (rc != SQLITE_OK) return rc;
  if (name != nullptr) {
    ours->path = new (std::nothrow) std::string(name);
    FaultVfs::instance().opened(name);
  }
  ours->base.pMethods = &kMethods;
  return SQLITE_OK;
}
int vfs_delete(sqlite3_vfs*, const char* name, int sync_dir) {
  if (FaultVfs::instance().crashed()) return SQLITE_IOERR_DELETE;
  FaultVfs::instance().removed(name);
  return system_vfs()->xDelete(system_vfs(), name, sync_dir);
}

void copy_of(const std::string& path, Bytes& out) {
  std::ifstream in(path, std::ios::binary);
  out.assign(std::istreambuf_iterator<char>(in), {});
}

void put(Bytes& image, const FaultVfs::Change& change) {
  if (change.truncate) {
    image.resize(change.offset);
    return;
  }
  if (image.size() < change.offset + change.bytes.size()) image.resize(change.offset + change.bytes.size());
  std::copy(change.bytes.begin(), change.bytes.end(), image.begin() + static_cast<std::ptrdiff_t>(change.offset));
}

// Each sector of the write lands or not.
void put_torn(Bytes& image, const FaultVfs::Change& change, Rng& rng) {
  if (change.truncate) return put(image, change);
  for (std::size_t at = 0; at < change.bytes.size(); at += kSector) {
    const std::size_t size = std::min(kSector, change.bytes.size() - at);
    const auto begin = change.bytes.begin() + static_cast<std::ptrdiff_t>(at);
    if (rng.chance(1, 2))
      put(image, {change.offset + at, Bytes(begin, begin + static_cast<std::ptrdiff_t>(size)), false});
  }
}

}  // namespace

FaultVfs& FaultVfs::instance() {
  static FaultVfs only;
  static const bool registered = [] {
    static sqlite3_vfs vfs = *system_vfs();
    vfs.pNext = nullptr;
    vfs.zName = kName;
    vfs.szOsFile = static_cast<int>(sizeof(ShimFile)) + system_vfs()->szOsFile;
    vfs.xOpen = vfs_open;
    vfs.xDelete = vfs_delete;
    return sqlite3_vfs_register(&vfs, 0) == SQLITE_OK;
  }();
  MUSTER_CHECK(registered);
  return only;
}

void FaultVfs::reset() {
  std::lock_guard lock(mutex_);
  files_.clear();
  operations_ = crash_at_ = full_from_ = fail_sync_at_ = 0;
  crashed_ = false;
}
void FaultVfs::crash_at(std::uint64_t operation) {
  std::lock_guard lock(mutex_);
  crash_at_ = operation == 0 ? 0 : operations_ + operation;
}
void FaultVfs::crash_now() {
  std::lock_guard lock(mutex_);
  crashed_ = true;
}
void FaultVfs::kill_at(std::uint64_t operation, Loss loss) {
  std::lock_guard lock(mutex_);
  kill_at_ = operation == 0 ? 0 : operations_ + operation;
  kill_loss_ = loss;
}
bool FaultVfs::crashed() const {
  std::lock_guard lock(mutex_);
  return crashed_;
}
std::uint64_t FaultVfs::operations() const {
  std::lock_guard lock(mutex_);
  return operations_;
}
void FaultVfs::full_after(std::uint64_t operation) {
  std::lock_guard lock(mutex_);
  full_from_ = operation == 0 ? 0 : operations_ + operation;
}
void FaultVfs::fail_sync(std::uint64_t operation) {
  std::lock_guard lock(mutex_);
  fail_sync_at_ = operations_ + operation;
}

bool FaultVfs::tick() {
  ++operations_;
  if (crash_at_ != 0 && operations_ >= crash_at_) crashed_ = true;
  if (kill_at_ != 0 && operations_ >= kill_at_) {
    leave(kill_loss_, kill_at_);
    ::kill(::getpid(), SIGKILL);
    ::pause();
  }
  return crashed_;
}

int FaultVfs::before_write(const std::string& path, Change change) {
  std::lock_guard lock(mutex_);
  const bool was_dead = crashed_;
  const bool dead = tick();
  const bool grows = !change.truncate;
  if (!was_dead && !(grows && full_from_ != 0 && operations_ >= full_from_))
    files_[path].unsynced.push_back(std::move(change));
  if (dead) return SQLITE_IOERR_WRITE;
  return grows && full_from_ != 0 && operations_ >= full_from_ ? SQLITE_FULL : SQLITE_OK;
}

int FaultVfs::before_sync(const std::string& path) {
  std::lock_guard lock(mutex_);
  if (tick()) return SQLITE_IOERR_FSYNC;
  if (fail_sync_at_ != 0 && operations_ >= fail_sync_at_) {
    fail_sync_at_ = 0;
    return SQLITE_IOERR_FSYNC;
  }
  File& file = files_[path];
  for (const Change& change : file.unsynced) put(file.synced, change);
  file.unsynced.clear();
  return SQLITE_OK;
}

void FaultVfs::opened(const std::string& path) {
  std::lock_guard lock(mutex_);
  auto [it, fresh] = files_.try_emplace(path);
  if (fresh) copy_of(path, it->second.synced);
}
void FaultVfs::removed(const std::string& path) {
  std::lock_guard lock(mutex_);
  files_.erase(path);
}

void FaultVfs::recover(Loss loss, std::uint64_t seed) {
  std::lock_guard lock(mutex_);
  leave(loss, seed);
  crashed_ = false;
  crash_at_ = full_from_ = fail_sync_at_ = 0;
}

void FaultVfs::leave(Loss loss, std::uint64_t seed) {
  Rng rng(seed);
  for (auto& [path, file] : files_) {
    for (const Change& change : file.unsynced) {
      if (loss == Loss::All || rng.chance(1, 2)) continue;
      if (loss == Loss::Torn)
        put_torn(file.synced, change, rng);
      else
        put(file.synced, change);
    }
    file.unsynced.clear();
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(file.synced.data()), static_cast<std::streamsize>(file.synced.size()));
    std::remove((path + "-shm").c_str());
  }
}

}  // namespace muster::store
