"""GPUs for tests on machines without one: a fake driver library (tests/testing/nvml), a CDI specification whose device nodes are /dev/null, and
NVIDIA's container hook as a script that writes down what it was asked.

    gpus = Gpus(folder); gpus.write("gpu GPU-a mem_mib=8000\\n"); with gpus.environment(): start the agent or privd
    gpus.hold("GPU-a", pid, 2048)      # memory held by a process, while it lives

Thread rule: one thread.
"""
import contextlib
import ctypes
import glob
import json
import os
import stat
import subprocess
import time

import engines  # noqa: F401  (the engines that the hook is for)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Gpus:
    def __init__(self, folder):
        self.driver, self.config = folder + "/libnvidia-ml.so.1", folder + "/gpus"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", self.driver, ROOT + "/tests/testing/nvml/fake_nvml.c"], check=True)
        self.devices, self.held, self.owners = "", [], []

    def write(self, devices=None):
        if devices is not None:
            self.devices = devices
        with open(self.config + ".part", "w") as f:
            f.write(self.devices + "".join("proc %s %d %d\n" % each for each in self.held + self.owners))
        os.rename(self.config + ".part", self.config)

    def variables(self):
        return {"MUSTER_NVML": self.driver, "MUSTER_FAKE_NVML": self.config}

    @contextlib.contextmanager
    def environment(self):
        before = {key: os.environ.get(key) for key in self.variables()}
        os.environ.update(self.variables())
        try:
            yield
        finally:
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)

    def hold(self, uuid, pid, mib):
        self.held = [each for each in self.held if os.path.exists("/proc/%d" % each[1])] + [(uuid, pid, mib)]
        self.write()

    def owner(self, process):
        """A program of the owner's on a GPU: (uuid, pid, MiB) or None."""
        self.owners = [process] if process else []
        self.write()

    def memory_used(self, uuid):
        """What the driver says, through its library."""
        class Memory(ctypes.Structure):
            _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]
        with self.environment():
            library = ctypes.CDLL(self.driver)
            # The library reads its environment by getenv: os.environ reaches it through putenv.
            assert library.nvmlInit_v2() == 0
            count = ctypes.c_uint()
            library.nvmlDeviceGetCount_v2(ctypes.byref(count))
            for index in range(count.value):
                handle, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), Memory()
                library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
                library.nvmlDeviceGetUUID(handle, name, 96)
                if name.value.decode() == uuid:
                    assert library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
                    return memory.used
        raise AssertionError("no GPU " + uuid)

    def power_mw(self, uuid):
        last = None
        with contextlib.suppress(FileNotFoundError), open(self.config + ".power") as f:
            for line in f:
                name, value = line.split()
                last = int(value) if name == uuid else last
        return last

    def wait_power(self, uuid, milliwatts, seconds=20):
        end = time.time() + seconds
        while time.time() < end and self.power_mw(uuid) != milliwatts:
            time.sleep(0.1)
        assert self.power_mw(uuid) == milliwatts, "the limit of %s is %s mW, not %d" % (uuid, self.power_mw(uuid), milliwatts)

    @staticmethod
    def pids_with(text):
        """Processes of this machine whose command line holds the text, but not this test itself."""
        out = []
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            with contextlib.suppress(OSError), open(path, "rb") as f:
                words = f.read()
                pid = int(path.split("/")[2])
                if text.encode() in words and pid != os.getpid() and words.startswith(b"python3\0-c"):
                    out.append(pid)
        return out

    def close(self):
        pass


class CdiSpec:
    """Devices that are /dev/null, in the place where every engine looks."""

    def __init__(self, uuids):
        self.path = "/var/run/cdi/muster-test-%d.json" % os.getpid()
        self.made = not os.path.isdir("/var/run/cdi")
        os.makedirs("/var/run/cdi", exist_ok=True)
        self.usual = {uuid: ["nvidia%d" % index] for index, uuid in enumerate(uuids)}
        self.write()

    def write(self, nodes=None):
        devices = [{"name": uuid, "containerEdits": {"deviceNodes": [
            {"path": "/dev/" + node, "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3} for node in names]}} for uuid, names in (nodes or self.usual).items()]
        with open(self.path, "w") as f:
            json.dump({"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices, "containerEdits": {}}, f)

    def close(self):
        os.unlink(self.path)
        if self.made:
            with contextlib.suppress(OSError):
                os.rmdir("/var/run/cdi")


class NvidiaHook:
    """Docker knows GPUs when nvidia-container-runtime-hook is on its PATH and a runtime is called nvidia."""

    def __init__(self, folder):
        self.folder, self.log = folder + "/hook", folder + "/hook/asked"
        os.makedirs(self.folder)
        script = self.folder + "/nvidia-container-runtime-hook"
        with open(script, "w") as f:
            f.write("#!/usr/bin/env python3\nimport json,sys\nstate=json.load(sys.stdin)\nconfig=json.load(open(state['bundle']+'/config.json'))\n"
                    "env=dict(e.split('=',1) for e in config['process']['env'])\nopen(%r,'a').write(env.get('NVIDIA_VISIBLE_DEVICES','-')+' '+env.get('LD_PRELOAD','')+'\\n')\n" % self.log)
        os.chmod(script, os.stat(script).st_mode | stat.S_IXUSR)

    def asked(self):
        with contextlib.suppress(FileNotFoundError), open(self.log) as f:
            return [line.strip() for line in f]
        return []

    def variables(self):
        return {"PATH": self.folder + ":" + os.environ["PATH"]}

    def arguments(self):
        return ["--add-runtime", "nvidia=/usr/sbin/runc"]

    def engine(self, base):
        hook = self

        class WithHook(base):
            def command(self):
                return super().command() + hook.arguments()

            def environment(self):
                return dict(super().environment(), **hook.variables())
        return WithHook

    def close(self):
        pass
