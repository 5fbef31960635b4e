#!/usr/bin/env python3
"""Software bill of materials of a release build as CycloneDX 1.5 JSON: what the four programs are linked with, what of Debian's headers was
compiled into them, and what the default image is made of. The same build gives the same bytes.

    tools/sbom.py [--build build/release] [--out FILE]
"""
import argparse
import datetime
import glob
import hashlib
import json
import os
import re
import subprocess
import sys
import uuid

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAMS = ("musterd", "muster-relay", "muster-agent", "muster")


def run(*command, cwd=ROOT):
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout


def owners(paths):
    """Installed Debian package of each file; the two names of a merged /usr are the same file."""
    wanted = {}
    for path in paths:
        real = os.path.realpath(path)
        for name in {path, real, real.removeprefix("/usr"), "/usr" + path}:
            wanted[name] = path
    found = {}
    for listing in glob.glob("/var/lib/dpkg/info/*.list"):
        with open(listing, encoding="utf-8") as f:
            for line in f:
                path = wanted.get(line.rstrip("\n"))
                if path:
                    found[path] = os.path.basename(listing)[:-len(".list")].split(":")[0]
    return found


def version_of(package):
    return run("dpkg-query", "-W", "-f", "${Version}\t${Architecture}\t${source:Package}\t${source:Version}", package).split("\t")


def linked(program):
    """Shared libraries by path; direct ones are named by the program itself."""
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", program)))
    libraries = {}
    for name, path in re.findall(r"^\s*(\S+) => (/\S+)", run("ldd", program), re.M):
        libraries[path] = name in needed
    return libraries


def compiled_in(build):
    """Headers from outside of the tree that went into objects, as ninja noted them."""
    out = set()
    for line in run("ninja", "-C", build, "-t", "deps").splitlines():
        path = line.strip()
        if path.startswith(("/usr/include/", "/usr/lib/")):
            out.add(path)
    return out


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def deb(package, use):
    version, architecture, source, source_version = version_of(package)
    return {"type": "library", "bom-ref": "deb:" + package, "name": package, "version": version,
            "purl": "pkg:deb/debian/%s@%s?arch=%s" % (package, version.replace("+", "%2B").replace(":", "%3A"), architecture),
            "properties": [{"name": "muster:use", "value": use}, {"name": "muster:source", "value": source + " " + source_version}]}


def image_parts():
    with open(ROOT + "/images/ray/versions", encoding="utf-8") as f:
        pins = dict(line.strip().split("=", 1) for line in f if "=" in line and not line.startswith("#"))
    ray = pins["ray"]
    return [{"type": "library", "bom-ref": "pypi:ray", "name": "ray", "version": ray, "purl": "pkg:pypi/ray@" + ray, "scope": "optional",
             "properties": [{"name": "muster:use", "value": "default image, extras " + pins.get("extras", "")}]},
            {"type": "operating-system", "bom-ref": "image:debian", "name": "debian", "version": pins["debian"], "scope": "optional",
             "properties": [{"name": "muster:use", "value": "base of the default image"}]}]


def bom(build):
    programs = [os.path.join(build, name) for name in PROGRAMS]
    missing = [p for p in programs if not os.path.exists(p)]
    if missing:
        raise SystemExit("tools/sbom.py: %s is not built; run: make build" % missing[0])
    libraries = {program: linked(program) for program in programs}
    paths = {path for found in libraries.values() for path in found}
    headers = compiled_in(build)
    packages = owners(paths | headers)
    strangers = sorted(p for p in paths if p not in packages)
    if strangers:
        raise SystemExit("tools/sbom.py: no Debian package owns %s; the build links something that this list cannot name" % strangers[0])
    run_time = {packages[path] for path in paths}
    direct = {packages[path] for found in libraries.values() for path, is_direct in found.items() if is_direct}
    build_time = {packages[path] for path in headers if path in packages} - run_time
    parts = [deb(name, "linked" if name in direct else "linked by a library") for name in sorted(run_time)]
    parts += [deb(name, "headers compiled in") for name in sorted(build_time)]
    version = re.search(r"project\(muster VERSION (\S+)", open(ROOT + "/CMakeLists.txt").read())[1]
    files = [{"type": "application", "bom-ref": "program:" + os.path.basename(p), "name": os.path.basename(p), "version": version,
              "hashes": [{"alg": "SHA-256", "content": digest(p)}]} for p in programs]
    relations = [{"ref": "program:" + os.path.basename(p), "dependsOn": sorted({"deb:" + packages[path] for path in found} | {"deb:" + n for n in build_time})}
                 for p, found in libraries.items()]
    when = int(os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct"))
    components = files + parts + image_parts()
    identity = hashlib.sha256(json.dumps(components, sort_keys=True).encode()).hexdigest()
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "serialNumber": "urn:uuid:" + str(uuid.UUID(identity[:32])), "version": 1,
            "metadata": {"timestamp": datetime.datetime.fromtimestamp(when, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                         "component": {"type": "application", "bom-ref": "muster", "name": "muster", "version": version, "licenses": [{"license": {"id": "Apache-2.0"}}]}},
            "components": components,
            "dependencies": [{"ref": "muster", "dependsOn": ["program:" + name for name in PROGRAMS]}] + relations}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", default=os.path.join(ROOT, "build/release"))
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    text = json.dumps(bom(os.path.abspath(args.build)), indent=1) + "\n"
    if not args.out:
        sys.stdout.write(text)
        return
    with open(args.out, "w", encoding="utf-8") as f:
        f.write(text)
    print("%s: %d components" % (args.out, text.count('"bom-ref"') - 1))


if __name__ == "__main__":
    main()
