"""What each step of a run must teach, worked out the slow way, with no code of dist_sft: a hash per step.

python tests/service/oracle.py RUN.json: {"files", "weights" (or null), "seed", "per_step", "steps", "context", "vocab"}
"""

import hashlib
import json
import math
import struct
import sys
from fractions import Fraction
from pathlib import Path


def mix(z):
    z = (z + 0x9E3779B97F4A7C15) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return z ^ (z >> 31)


def row_at(visit, n, seed, stream):
    """The row that stands at a visit of a stream of n rows: a Feistel permutation for each epoch."""
    epoch, x = divmod(visit, n)
    state = int.from_bytes(hashlib.blake2b(b"order", digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little")
    state = mix(mix(state ^ mix(stream)) ^ mix(epoch))
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    while True:
        high, low = divmod(x, b)
        for number in range(12 if n < 4096 else 8):
            if number % 2:
                low = (low + ((mix(high ^ mix(number ^ state)) >> 32) * b >> 32)) % b
            else:
                high = (high + ((mix(low ^ mix(number ^ state)) >> 32) * a >> 32)) % a
        x = high * b + low
        if x < n:
            return x


def streams(weights, count):
    """Which stream stands at each position: of those whose next sample is due to start, the one due to end first."""
    shares, done, chosen = [Fraction(w, sum(weights)) for w in weights], [0] * len(weights), []
    for slot in range(count):
        waiting = [k for k, w in enumerate(shares) if w and math.floor(done[k] / w) <= slot]
        chosen.append(min(waiting, key=lambda k: (math.ceil((done[k] + 1) / shares[k]), k)))
        done[chosen[-1]] += 1
    return chosen


def sample(line, run):
    """Ids and weights of one chat in ChatML over single bytes, or None where the row cannot be learned."""
    try:
        messages = json.loads(line)["messages"]
    except (ValueError, KeyError):
        return None
    start, stop, ids, weights = run["vocab"]["<|im_start|>"], run["vocab"]["<|im_end|>"], [], []
    for message in messages:
        head = [start, *(message["role"] + "\n").encode()]
        answer = [*message["content"].encode(), stop]
        ids += [*head, *answer, 10]
        weights += [0.0] * len(head) + [float(message["role"] == "assistant")] * len(answer) + [0.0]
    return (ids, weights) if len(ids) <= run["context"] and any(weights) else None


def hashes(run):
    rows = [Path(file).read_bytes().split(b"\n")[:-1] for file in run["files"]]
    steps, seen = [hashlib.sha256() for _ in range(run["steps"])], [0] * len(rows)
    for position, stream in enumerate(streams(run["weights"] or [1], run["per_step"] * run["steps"])):
        pool = [(s, r) for s in range(len(rows)) if s == stream or not run["weights"] for r in range(len(rows[s]))]
        source, row = pool[row_at(seen[stream], len(pool), run["seed"], stream)]
        seen[stream] += 1
        if found := sample(rows[source][row], run):
            digest, n = steps[position // run["per_step"]], len(found[0])
            digest.update(f"{position},{source},{row},{n};".encode() + struct.pack(f"<{n}i{n}f", *found[0], *found[1]))
    return [digest.hexdigest() for digest in steps]


if __name__ == "__main__":
    print("\n".join(hashes(json.loads(Path(sys.argv[1]).read_text()))))
