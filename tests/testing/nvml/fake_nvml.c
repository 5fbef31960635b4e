/* A libnvidia-ml.so.1 without a GPU: what it reports is read anew at every call from the text file $MUSTER_FAKE_NVML, so a
 * test changes devices under a running agent. Lines:
 *   driver 550.54.15          cuda 12040
 *   gpu UUID key=value...     keys: name mem_mib use temp power_mw default_mw min_mw max_mw sm mem_mhz ecc_c ecc_u xid lost
 *                             mig (1: the GPU is in MIG mode, 0: it could be; without it the mode is not known)
 *   mig UUID MIG-UUID PROFILE MIB   an instance on that GPU, the next of it
 *   proc UUID PID MIB         memory held by a process; counts only while /proc/PID exists
 *   ghost UUID PID MIB        the same, named also after its end, as the driver does for a moment
 * No file: the library does not start. xid=CODE:N makes the N-th event, told once. Power limits that were set are appended to
 * $MUSTER_FAKE_NVML.power as "UUID milliwatts"; the last one counts, in every process.
 * Own code after NVML's documented interface; only for tests. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEVICES 16
#define PROCS 64
#define INSTANCES 16
enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT = 7, NOT_LOADED = 9, TIMEOUT = 10, LOST = 15 };

struct gpu {
  char uuid[96], name[96];
  unsigned use, temp, power, def, min, max, sm, mem_mhz, xid, xid_n, lost, mig, mig_known;
  unsigned long long mem, ecc_c, ecc_u;
};
struct proc { char uuid[96]; unsigned pid; unsigned long long bytes; };
struct instance { char gpu[96], uuid[96], profile[32]; unsigned long long mem; };
struct world { char driver[64]; int cuda, gpus, procs, instances; struct gpu gpu[DEVICES]; struct proc proc[PROCS]; struct instance instance[INSTANCES]; };
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } use_t;
typedef struct { void *device; unsigned long long type, data; unsigned gi, ci; } event_t;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gi, ci; } process_t;

static int started;
static char handles[DEVICES][96]; /* a handle points to its UUID, so that it survives a changed order */
static char instance_handles[INSTANCES][96];
static unsigned told[DEVICES];

static const char *config(void) { return getenv("MUSTER_FAKE_NVML"); }

static void set_key(struct gpu *g, const char *key, const char *value) {
  unsigned long long n = strtoull(value, NULL, 10);
  if (!strcmp(key, "name")) { snprintf(g->name, sizeof g->name, "%s", value); for (char *c = g->name; *c; ++c) if (*c == '_') *c = ' '; }
  else if (!strcmp(key, "mem_mib")) g->mem = n << 20;
  else if (!strcmp(key, "use")) g->use = (unsigned)n;
  else if (!strcmp(key, "temp")) g->temp = (unsigned)n;
  else if (!strcmp(key, "power_mw")) g->power = (unsigned)n;
  else if (!strcmp(key, "default_mw")) g->def = (unsigned)n;
  else if (!strcmp(key, "min_mw")) g->min = (unsigned)n;
  else if (!strcmp(key, "max_mw")) g->max = (unsigned)n;
  else if (!strcmp(key, "sm")) g->sm = (unsigned)n;
  else if (!strcmp(key, "mem_mhz")) g->mem_mhz = (unsigned)n;
  else if (!strcmp(key, "ecc_c")) g->ecc_c = n;
  else if (!strcmp(key, "ecc_u")) g->ecc_u = n;
  else if (!strcmp(key, "mig")) { g->mig = (unsigned)n; g->mig_known = 1; }
  else if (!strcmp(key, "lost")) g->lost = (unsigned)n;
  else if (!strcmp(key, "xid")) { const char *colon = strchr(value, ':'); g->xid = (unsigned)n; g->xid_n = colon ? (unsigned)strtoul(colon + 1, NULL, 10) : 1; }
}

static int look(struct world *w) {
  memset(w, 0, sizeof *w);
  const char *path = config();
  FILE *f = path ? fopen(path, "r") : NULL;
  if (!f) return NOT_LOADED;
  snprintf(w->driver, sizeof w->driver, "610.43.02");
  w->cuda = 12040;
  char line[1024];
  while (fgets(line, sizeof line, f)) {
    char *save = NULL, *word = strtok_r(line, " \n", &save);
    if (!word || *word == '#') continue;
    char *first = strtok_r(NULL, " \n", &save);
    if (!first) continue;
    if (!strcmp(word, "driver")) snprintf(w->driver, sizeof w->driver, "%s", first);
    else if (!strcmp(word, "cuda")) w->cuda = atoi(first);
    else if (!strcmp(word, "gpu") && w->gpus < DEVICES) {
      struct gpu *g = &w->gpu[w->gpus++];
      snprintf(g->uuid, sizeof g->uuid, "%s", first);
      snprintf(g->name, sizeof g->name, "Fake GPU");
      g->mem = 16ull << 30; g->def = 300000; g->min = 100000; g->max = 350000;
      for (char *pair = strtok_r(NULL, " \n", &save); pair; pair = strtok_r(NULL, " \n", &save)) {
        char *equals = strchr(pair, '=');
        if (equals) { *equals = 0; set_key(g, pair, equals + 1); }
      }
    } else if (!strcmp(word, "mig") && w->instances < INSTANCES) {
      const char *uuid = strtok_r(NULL, " \n", &save), *profile = strtok_r(NULL, " \n", &save), *mib = strtok_r(NULL, " \n", &save);
      if (!uuid || !profile || !mib) continue;
      struct instance *i = &w->instance[w->instances++];
      snprintf(i->gpu, sizeof i->gpu, "%s", first);
      snprintf(i->uuid, sizeof i->uuid, "%s", uuid);
      snprintf(i->profile, sizeof i->profile, "%s", profile);
      i->mem = strtoull(mib, NULL, 10) << 20;
    } else if ((!strcmp(word, "proc") || !strcmp(word, "ghost")) && w->procs < PROCS) {
      const char *pid = strtok_r(NULL, " \n", &save), *mib = strtok_r(NULL, " \n", &save);
      char at[64];
      if (!pid || !mib) continue;
      snprintf(at, sizeof at, "/proc/%s", pid);
      if (!strcmp(word, "proc") && access(at, F_OK) != 0) continue;
      struct proc *p = &w->proc[w->procs++];
      snprintf(p->uuid, sizeof p->uuid, "%s", first);
      p->pid = (unsigned)strtoul(pid, NULL, 10);
      p->bytes = strtoull(mib, NULL, 10) << 20;
    }
  }
  fclose(f);
  return started ? OK : UNINITIALIZED;
}

static int find(void *handle, struct world *w, struct gpu **out) {
  int code = look(w);
  if (code != OK) return code;
  for (int i = 0; i < w->gpus; ++i)
    if (!strcmp(w->gpu[i].uuid, (const char *)handle)) { *out = &w->gpu[i]; return w->gpu[i].lost ? LOST : OK; }
  return LOST;
}

/* The instance that a handle means, NULL: it means a GPU. */
static struct instance *instance_at(void *handle, struct world *w) {
  if (look(w) != OK) return NULL;
  for (int i = 0; i < w->instances; ++i)
    if (!strcmp(w->instance[i].uuid, (const char *)handle)) return &w->instance[i];
  return NULL;
}

static unsigned limit_of(const struct gpu *g) {
  char path[1024], uuid[96];
  unsigned mw, last = g->def;
  snprintf(path, sizeof path, "%s.power", config());
  FILE *f = fopen(path, "r");
  if (!f) return last;
  while (fscanf(f, "%95s %u", uuid, &mw) == 2) if (!strcmp(uuid, g->uuid)) last = mw;
  fclose(f);
  return last;
}

int nvmlInit_v2(void) { struct world w; started = 1; int code = look(&w); if (code != OK) started = 0; return code; }
int nvmlShutdown(void) { started = 0; return OK; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { struct world w; int code = look(&w); if (code == OK) snprintf(out, size, "%s", w.driver); return code; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { struct world w; int code = look(&w); if (code == OK) *out = w.cuda; return code; }
int nvmlDeviceGetCount_v2(unsigned *out) { struct world w; int code = look(&w); if (code == OK) *out = (unsigned)w.gpus; return code; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
  struct world w;
  int code = look(&w);
  if (code != OK) return code;
  if (index >= (unsigned)w.gpus) return INVALID;
  for (int i = 0; i < DEVICES; ++i) {
    if (!handles[i][0]) snprintf(handles[i], sizeof handles[i], "%s", w.gpu[index].uuid);
    if (!strcmp(handles[i], w.gpu[index].uuid)) { *out = handles[i]; return OK; }
  }
  return INVALID;
}

#define GPU(handle) struct world w; struct gpu *g = NULL; int code = find(handle, &w, &g); if (code != OK) return code
int nvmlDeviceGetUUID(void *h, char *out, unsigned size) { snprintf(out, size, "%s", (const char *)h); return OK; }
int nvmlDeviceGetName(void *h, char *out, unsigned size) {
  struct world all;
  struct instance *i = instance_at(h, &all);
  GPU(i ? (void *)i->gpu : h);
  if (i) snprintf(out, size, "%s MIG %s", g->name, i->profile);
  else snprintf(out, size, "%s", g->name);
  return OK;
}
int nvmlDeviceGetMigMode(void *h, unsigned *now, unsigned *next) { GPU(h); if (!g->mig_known) return NOT_SUPPORTED; *now = *next = g->mig; return OK; }
int nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned *out) { GPU(h); *out = g->mig_known ? 7 : 0; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned index, void **out) {
  GPU(h);
  unsigned n = 0;
  for (int i = 0; i < w.instances; ++i) {
    if (strcmp(w.instance[i].gpu, g->uuid) || n++ != index) continue;
    for (int j = 0; j < INSTANCES; ++j) {
      if (!instance_handles[j][0]) snprintf(instance_handles[j], sizeof instance_handles[j], "%s", w.instance[i].uuid);
      if (!strcmp(instance_handles[j], w.instance[i].uuid)) { *out = instance_handles[j]; return OK; }
    }
  }
  return NOT_FOUND;
}
int nvmlDeviceGetUtilizationRates(void *h, use_t *out) { GPU(h); out->gpu = g->use; out->memory = 0; return OK; }
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *out) { GPU(h); if (sensor != 0) return INVALID; *out = g->temp; return OK; }
int nvmlDeviceGetPowerUsage(void *h, unsigned *out) { GPU(h); *out = g->power; return OK; }
int nvmlDeviceGetPowerManagementLimit(void *h, unsigned *out) { GPU(h); *out = limit_of(g); return OK; }
int nvmlDeviceGetPowerManagementDefaultLimit(void *h, unsigned *out) { GPU(h); *out = g->def; return OK; }
int nvmlDeviceGetPowerManagementLimitConstraints(void *h, unsigned *min, unsigned *max) { GPU(h); *min = g->min; *max = g->max; return OK; }
int nvmlDeviceGetClockInfo(void *h, int kind, unsigned *out) { GPU(h); *out = kind == 2 ? g->mem_mhz : g->sm; return OK; }

int nvmlDeviceSetPowerManagementLimit(void *h, unsigned mw) {
  GPU(h);
  if (geteuid() != 0) return NO_PERMISSION;
  if (mw < g->min || mw > g->max) return INVALID;
  char path[1024];
  snprintf(path, sizeof path, "%s.power", config());
  FILE *f = fopen(path, "a");
  if (!f) return NO_PERMISSION;
  fprintf(f, "%s %u\n", g->uuid, mw);
  fclose(f);
  return OK;
}

int nvmlDeviceGetTotalEccErrors(void *h, int kind, int counter, unsigned long long *out) {
  GPU(h);
  if (counter != 0) return NOT_SUPPORTED;
  *out = kind == 0 ? g->ecc_c : g->ecc_u;
  return OK;
}

int nvmlDeviceGetMemoryInfo(void *h, memory_t *out) {
  struct world all;
  struct instance *part = instance_at(h, &all);
  if (part) { out->total = out->free = part->mem; out->used = 0; return OK; }
  GPU(h);
  out->total = g->mem;
  out->used = 0;
  for (int i = 0; i < w.procs; ++i) if (!strcmp(w.proc[i].uuid, g->uuid)) out->used += w.proc[i].bytes;
  out->free = out->total - out->used;
  return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *count, process_t *out) {
  GPU(h);
  unsigned n = 0;
  for (int i = 0; i < w.procs; ++i) {
    if (strcmp(w.proc[i].uuid, g->uuid)) continue;
    if (n == *count) return INSUFFICIENT;
    out[n].pid = w.proc[i].pid; out[n].bytes = w.proc[i].bytes; out[n].gi = out[n].ci = 0;
    ++n;
  }
  *count = n;
  return OK;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned *count, process_t *out) { GPU(h); (void)out; *count = 0; return OK; }

int nvmlEventSetCreate(void **out) { static int set; *out = &set; return OK; }
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceRegisterEvents(void *h, unsigned long long types, void *set) { GPU(h); (void)set; return types == 8 ? OK : NOT_SUPPORTED; }
int nvmlEventSetWait_v2(void *set, event_t *out, unsigned ms) {
  struct world w;
  (void)set; (void)ms;
  int code = look(&w);
  if (code != OK) return code;
  for (int i = 0; i < DEVICES; ++i) {
    for (int j = 0; j < w.gpus; ++j) {
      if (strcmp(handles[i], w.gpu[j].uuid) || !w.gpu[j].xid || told[i] >= w.gpu[j].xid_n) continue;
      told[i] = w.gpu[j].xid_n;
      out->device = handles[i]; out->type = 8; out->data = w.gpu[j].xid; out->gi = out->ci = 0;
      return OK;
    }
  }
  return TIMEOUT;
}
