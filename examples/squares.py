"""The demo's job: sums squares in small tasks over the whole cluster and says which machine computed each piece.

A task that was on a machine when it vanished is run again by Ray elsewhere; the sum at the end shows that nothing was
lost or counted twice.   python squares.py [PIECES] [SECONDS_A_PIECE]
"""
import sys
import time

import ray

pieces = int(sys.argv[1]) if len(sys.argv) > 1 else 40
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
ray.init(address="auto", log_to_driver=False)


@ray.remote(num_cpus=1, max_retries=10)
def square(i):
    time.sleep(seconds)
    return i, i * i, ray.util.get_node_ip_address()


started = time.time()
waiting = [square.remote(i) for i in range(pieces)]
total, machines, line = 0, set(), 0
while waiting:
    done, waiting = ray.wait(waiting, num_returns=1)
    for i, value, where in ray.get(done):
        total += value
        machines.add(where)
        line += 1
        print("%6.1fs piece %d of %d: %d^2 = %d on %s" % (time.time() - started, line, pieces, i, value, where), flush=True)
expected = sum(i * i for i in range(pieces))
print("RESULT %d %s on %d machines" % (total, "right" if total == expected else "WRONG", len(machines)), flush=True)
sys.exit(0 if total == expected else 1)
