"""How long a cold start takes, against the time that the disk needs for the same bytes:

  python3 tests/deploy/cold_start.py MODEL.gguf [--repeat 3]

The file is dropped from the page cache; its weights are read with O_DIRECT in large pieces (disk time); dropped again;
then a server starts and a client asks until the first token is there.
"""
import argparse
import json
import mmap
import os
import statistics
import time

import harness


def drop(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def disk_seconds(path, size):
    """Reads `size` bytes past the page cache, 4 MiB at a time."""
    piece = 4 << 20
    buffer = mmap.mmap(-1, piece)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    start = time.monotonic()
    done = 0
    while done < size:
        read = os.preadv(descriptor, [buffer], done)
        if read <= 0:
            break
        done += read
    seconds = time.monotonic() - start
    os.close(descriptor)
    return seconds


def start_seconds(path, threads):
    began = time.monotonic()
    with harness.Server("--model", path, "--threads", threads, "--dram-budget", "0", "--context", "1024") as server:
        ready = time.monotonic() - began
        server.generate(tokens=1)
        return ready, time.monotonic() - began


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", default=str(os.cpu_count()))
    args = parser.parse_args()
    size = json.loads(harness.run(harness.BINARY, "inspect", "--json", args.model).stdout)["dram_bytes"]
    disk, ready, first = [], [], []
    for _ in range(args.repeat):
        drop(args.model)
        disk.append(disk_seconds(args.model, size))
        drop(args.model)
        times = start_seconds(args.model, args.threads)
        ready.append(times[0])
        first.append(times[1])
    print("%.2f GB of weights, median of %d: disk %.2f s, ready after %.2f s, first token after %.2f s, %.2f s beyond the disk" % (
        size / 1e9, args.repeat, statistics.median(disk), statistics.median(ready), statistics.median(first),
        statistics.median(first) - statistics.median(disk)))


if __name__ == "__main__":
    main()
