"""How long a cold start takes, against the time that the disk needs for the same bytes:

  python3 tests/deploy/cold_start.py MODEL.gguf [--repeat 3] [--docker IMAGE]

The file is dropped from the page cache; its weights are read with O_DIRECT in large pieces (disk time); dropped again;
then a server starts, in a container of the image if one is named, and a client asks until the first token is there.
Before that as much memory is touched as the weights take: a virtual machine's host may have taken back what was free, and
gives it again more slowly than a disk reads. The server knows nothing of the device yet: it measures it.
"""
import argparse
import ctypes
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


def touch(size):
    """Takes `size` bytes in huge pages, as the server does, and gives them back."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    first = ctypes.c_char.from_buffer(memory)
    ctypes.memset(ctypes.addressof(first), 1, size)
    del first
    memory.close()


def start_seconds(path, threads):
    with harness.Folder() as state:
        began = time.monotonic()
        with harness.Server("--model", path, "--threads", threads, "--dram-budget", "3GiB",
                            env={"XDG_STATE_HOME": state}) as server:
            ready = time.monotonic() - began
            server.generate(tokens=1)
            return ready, time.monotonic() - began


def container_seconds(path, image):
    port, metrics = harness.free_port(), harness.free_port()

    def ready():  # by the metric: a health check each time would take the processor from the server
        text = harness.http_get("http://127.0.0.1:%d/metrics" % metrics)
        return harness.parse_metrics(text)["embergate_ready"][0][1] == 1

    began = time.monotonic()
    name = harness.run(
        "docker", "run", "--detach", "-p", "%d:50051" % port, "-p", "%d:9464" % metrics, "--read-only", "--cap-drop", "ALL",
        "--security-opt", "no-new-privileges", "--security-opt",
        "seccomp=" + os.path.join(harness.DEPLOY, "seccomp", "embergate.json"), "--memory", "3g", "--memory-swap", "3g",
        "-v", os.path.dirname(os.path.abspath(path)) + ":/models:ro", "-e", "EMBERGATE_MODEL=/models/" + os.path.basename(path),
        "-e", "EMBERGATE_ALLOW_UNAUTHENTICATED=true", image).stdout.strip()
    try:
        harness.wait_for("the container", ready, 300)
        seconds = time.monotonic() - began
        harness.run(harness.BINARY, "generate", "--address", "127.0.0.1:%d" % port, "--prompt", "Hello", "--max-tokens", "1")
        return seconds, time.monotonic() - began
    finally:
        harness.run("docker", "rm", "--force", name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", default=str(os.cpu_count()))
    parser.add_argument("--docker", metavar="IMAGE")
    args = parser.parse_args()
    size = json.loads(harness.run(harness.BINARY, "inspect", "--json", args.model).stdout)["dram_bytes"]
    disk, ready, first = [], [], []
    for _ in range(args.repeat):
        drop(args.model)
        disk.append(disk_seconds(args.model, size))
        drop(args.model)
        touch(size)
        times = container_seconds(args.model, args.docker) if args.docker else start_seconds(args.model, args.threads)
        ready.append(times[0])
        first.append(times[1])
    print("%.2f GB of weights, median of %d: disk %.2f s, ready after %.2f s, first token after %.2f s, %.2f s beyond the disk" % (
        size / 1e9, args.repeat, statistics.median(disk), statistics.median(ready), statistics.median(first),
        statistics.median(first) - statistics.median(disk)))


if __name__ == "__main__":
    main()
