#!/usr/bin/env python3
"""Writes the vectors of Wycheproof's JSON files as lines of hex, which a test without a JSON reader can take.

    convert.py FOLDER        FOLDER holds chacha20_poly1305_test.json, xchacha20_poly1305_test.json, x25519_test.json and ed25519_test.json

Each line: number, result (valid, acceptable, invalid), then the fields in hex, "-" for an empty one.
"""
import json
import os
import sys

AEAD = ["key", "iv", "aad", "msg", "ct", "tag"]
FIELDS = {"chacha20_poly1305": AEAD, "xchacha20_poly1305": AEAD, "x25519": ["public", "private", "shared"], "ed25519": ["pk", "msg", "sig"]}


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    for name, fields in FIELDS.items():
        document = json.load(open(os.path.join(sys.argv[1], name + "_test.json")))
        with open(os.path.join(here, name + ".txt"), "w") as out:
            out.write("# %s\n" % " ".join(["number", "result"] + fields))
            for group in document["testGroups"]:
                pk = group.get("publicKey", {}).get("pk")
                for test in group["tests"]:
                    values = dict(test, pk=pk)
                    out.write(" ".join([str(test["tcId"]), test["result"]] + [values[f] or "-" for f in fields]) + "\n")


if __name__ == "__main__":
    main()
