"""What the CIS Docker Benchmark asks of containers (its section 5), asked of an engine and of the kernel, not of our own code.

    for container in of_machine(socket, machine): complaints(container, own_folders)   # [] is good, else ["5.5: privileged", ...]
    of_process(pid)                                  # the same by /proc, for whatever made the process

The numbers are the benchmark's; what it lacks has a word instead. Thread rule: none.
"""
import json
import os
import urllib.parse

import images

OWN = ("/muster/run", "/muster/run/blobs", "/muster/helper", "/muster/secrets", "/tmp/ray", "/etc/resolv.conf")
SENSITIVE = ("/", "/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr", "/root", "/home", "/var/run", "/run")


def of_machine(engine, machine=""):
    """All containers of an agent's enrolment, as the engine describes them; without a machine all there are."""
    chosen = {"label": ["io.muster.machine=" + machine]} if machine else {}
    listed = images.call(engine, "GET", "/containers/json?all=1&filters=" + urllib.parse.quote(json.dumps(chosen)))[1]
    return [images.call(engine, "GET", "/containers/%s/json" % each["Id"])[1] for each in listed]


def sources(about):
    return [(m.get("Source", ""), m["Destination"], m) for m in about.get("Mounts") or []]


def complaints(about, own_folders):
    """own_folders: below which a bind mount may come from."""
    host, config = about["HostConfig"], about["Config"]
    network = (about.get("NetworkSettings") or {}).get("Ports") or {}
    options = host.get("SecurityOpt") or []
    limits = {each["Name"]: each["Hard"] for each in host.get("Ulimits") or []}
    log = (host.get("LogConfig") or {}).get("Config") or {}
    part = config["Labels"].get("io.muster.part", "")
    binds = [(source, to, mount) for source, to, mount in sources(about) if mount["Type"] == "bind"]
    apparmor = os.path.exists("/sys/kernel/security/apparmor")
    swap = os.path.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes") or os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    rules = [
        ("5.2: no AppArmor profile", apparmor and about.get("AppArmorProfile") in ("", "unconfined")),
        ("5.4: capabilities are not all dropped", "ALL" not in [c.upper() for c in host.get("CapDrop") or []] or bool(host.get("CapAdd"))),
        ("5.5: privileged", host["Privileged"]),
        ("5.6: a folder of the machine is mounted", any(not source.startswith(tuple(own_folders)) or source in SENSITIVE or to not in OWN for source, to, _ in binds)),
        ("5.9: ports are published", bool(host.get("PortBindings")) or any(network.values()) or host.get("PublishAllPorts", False)),
        ("5.10: the machine's network", host["NetworkMode"] == "host"),
        ("5.11: no bound of memory", host.get("Memory", 0) <= 0 or (swap and host.get("MemorySwap", -1) != host.get("Memory"))),
        ("5.12: no bound of processors", host.get("NanoCpus", 0) <= 0),
        ("5.13: a writable root that nobody watches", not host.get("ReadonlyRootfs") and part != "ray"),
        ("5.15: restarts by itself", (host.get("RestartPolicy") or {}).get("Name", "no") not in ("no", "")),
        ("5.16: the machine's processes", host.get("PidMode", "") == "host"),
        ("5.17: the machine's shared memory", host.get("IpcMode", "") in ("host", "shareable")),
        ("5.18: devices", bool(host.get("Devices"))),
        ("5.19: no bound of open files", limits.get("nofile", 0) <= 0),
        ("5.20: mounts that travel", any(mount.get("Propagation") not in ("", "rprivate", None) for _, _, mount in binds)),
        ("5.21: the machine's name", host.get("UTSMode", "") == "host"),
        ("5.22: no seccomp profile of ours", not any(o.startswith("seccomp=") and o != "seccomp=unconfined" for o in options)),
        ("5.25: another control group", host.get("CgroupParent", "") != ""),
        ("5.26: may gain privileges", not any(o.startswith("no-new-privileges") and not o.endswith("false") for o in options)),
        ("5.28: not pinned", not config["Image"].startswith("sha256:")),
        ("5.29: no bound of processes", (host.get("PidsLimit") or 0) <= 0),
        ("5.30: the engine's own bridge", host["NetworkMode"] != "none" and not host["NetworkMode"].startswith("container:")),
        ("5.31: the machine's users", host.get("UsernsMode", "") == "host"),
        ("5.32: the engine's socket", any(source.endswith(("docker.sock", "podman.sock", "containerd.sock")) for source, _, _ in binds)),
        ("log: no bound", not log.get("max-size") or not log.get("max-file")),
        ("core: crashes may reach the machine's handler", limits.get("core", 2) > 1),
        ("masked: /proc shows all", about["HostConfig"].get("MaskedPaths", [1]) == []),
        ("paths: read-only ones are not", about["HostConfig"].get("ReadonlyPaths", [1]) == []),
        ("volumes: more room than anybody counts", part != "ray" and any(mount["Type"] == "volume" for _, _, mount in sources(about)))]
    return [text for text, bad in rules if bad]


def of_process(pid):
    """What the kernel says of a process that is to be confined; the pid is this machine's."""
    with open("/proc/%d/status" % pid) as f:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
    with open("/proc/%d/limits" % pid) as f:
        core = next(line.split()[5] for line in f if line.startswith("Max core file size"))
    out = ["%s is %s" % (name, status[name]) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[name], 16)]
    out += ["%s is %s" % (name, status[name]) for name, wanted in (("NoNewPrivs", "1"), ("Seccomp", "2")) if status[name].strip() != wanted]
    out += ["shares the machine's %s" % kind for kind in ("pid", "mnt", "ipc", "uts", "net")
            if os.readlink("/proc/%d/ns/%s" % (pid, kind)) == os.readlink("/proc/self/ns/" + kind)]
    return out + (["core files up to " + core] if core not in ("0", "1") else [])
