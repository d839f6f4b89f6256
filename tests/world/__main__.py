"""`make soak`: worlds with new seeds, and a real daemon that is killed, for hours (ARGS="--hours 8"); ends at the first
that fails, and says how to have it again.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time

TESTS = ("tests/world/test_machine.py", "tests/e2e/test_buying_kill.py")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=None, help="run this one, once")
    parser.add_argument("--examples", type=int, default=40)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--kills", type=int, default=40)
    args = parser.parse_args()
    until = time.monotonic() + args.hours * 3600
    rounds = 0
    while not rounds or (args.seed is None and time.monotonic() < until):
        seed = random.randrange(2**31) if args.seed is None else args.seed
        how = {"SEED": seed, "EXAMPLES": args.examples, "STEPS": args.steps, "KILLS": args.kills}
        env = {f"SYNCD_WORLD_{name}": str(value) for name, value in how.items()}
        begun = time.monotonic()
        words = [sys.executable, "-m", "pytest", "-n0", "-q", "-x", "--timeout=7200", "-k", "not control", *TESTS]
        failed = subprocess.run(words, env={**os.environ, **env}, check=False).returncode
        rounds += 1
        print(f"round {rounds}, seed {seed}: {'FAILED' if failed else 'sound'}, {time.monotonic() - begun:.0f} s")
        if failed:
            options = f"--seed {seed} --examples {args.examples} --steps {args.steps} --kills {args.kills}"
            print(f'again with: make soak ARGS="{options}"', flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
