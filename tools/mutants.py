#!/usr/bin/env python3
"""Planted faults that no seed shows in good time, since another defence covers them or what brings them out is too rare: the unit
tests that catch each. `run()` switches each on (MUSTER_MUTANT=name, builds with MUSTER_MUTANTS only) and wants its test to fail.
The rows of the others are in tests/sim/mutants.cpp.

    tools/mutants.py        with build/asan; a line each, ends with 1 if one was missed
"""
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
UNIT = {
    "agent.accept_old_roster": ("agent_test", "Core.BringsAHeadUpOnlyWithItsRoster"),
    "agent.forget_untold_job": ("agent_test", "Core.RemembersTheEndOfAJobUntilTheServerNoLongerOrdersIt"),
    "control_expire_while_frozen": ("control_test", "ClusterLife.MassSilenceEvictsNobodyButAReadySpareStillReplaces"),
    "control_stale_plan": ("control_test", "ClusterLife.AGrowthThatNobodyWantsAnyMoreIsDropped"),
    "control_keep_leases_over_reboot": ("control_test", "ClusterLife.ARebootEndsWhatTheMachineHeldAndItsWordIsTakenForIt"),
    "control_replace_head": ("control_test", "SlowPairs.NeverTheHead"),
    "control_replace_at_once": ("control_test", "SlowPairs.TheWorkerInMoreOfThemIsReplacedByAnother"),
    "control_forget_apart": ("control_test", "SlowPairs.TheWorkerInMoreOfThemIsReplacedByAnother"),
    "session.one_sample_judges": ("session_test", "PairTable.SlowOnlyWhenItStaysSo"),
    "control_believe_contested": ("control_test", "ClusterLife.OfTwoMachinesWithOneKeyNeitherIsBelieved"),
}


def passes(program, test, mutant):
    """Whether the test ran and passed with this mutant; "" is none."""
    environment = dict(os.environ, MUSTER_MUTANT=mutant)
    done = subprocess.run([os.path.join(ROOT, "build/asan", program), "--gtest_filter=" + test], capture_output=True, text=True, env=environment, timeout=120)
    return done.returncode == 0 and "[  PASSED  ] 1 test" in done.stdout


def run():
    """(mutant, what is wrong with it or "") for each."""
    for mutant, (program, test) in sorted(UNIT.items()):
        if not passes(program, test, ""):
            yield mutant, "%s %s does not pass without it" % (program, test)
        else:
            yield mutant, "%s %s passes with it" % (program, test) if passes(program, test, mutant) else ""


if __name__ == "__main__":
    missed = 0
    for mutant, wrong in run():
        print("%s %s%s" % ("MISSED" if wrong else "caught", mutant, ": " + wrong if wrong else ""))
        missed += bool(wrong)
    sys.exit(1 if missed else 0)
