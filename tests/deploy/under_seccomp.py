"""under_seccomp.py PROFILE [--without call,call] -- COMMAND...

Runs COMMAND under a seccomp profile as Docker, or containerd with an OCI profile, would apply it to a container without
capabilities. Uses libseccomp, which every Debian system has, through ctypes.
"""
import ctypes
import errno
import json
import os
import platform
import sys

ALLOW = 0x7FFF0000
COMPARE = {"SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6,
           "SCMP_CMP_MASKED_EQ": 7}
GO_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}


class Argument(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def load_libseccomp():
    lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_init.argtypes = [ctypes.c_uint32]
    lib.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    lib.seccomp_rule_add_array.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint,
                                           ctypes.POINTER(Argument)]
    lib.seccomp_load.argtypes = [ctypes.c_void_p]
    return lib


def action(name, number):
    if name == "SCMP_ACT_ALLOW":
        return ALLOW
    if name == "SCMP_ACT_ERRNO":
        return 0x00050000 | number
    raise ValueError("action %s is not one that the profiles here use" % name)


def applies(rule, architecture, capabilities=frozenset()):
    """Docker's conditions: all of `includes`, none of `excludes`."""
    includes, excludes = rule.get("includes", {}), rule.get("excludes", {})
    if "arches" in includes and architecture not in includes["arches"]:
        return False
    if "caps" in includes and not set(includes["caps"]) <= capabilities:
        return False
    return not (architecture in excludes.get("arches", ()) or set(excludes.get("caps", ())) & capabilities)


def install(profile, without=()):
    """Loads the filter into this process. Returns the names that this machine's libseccomp does not know."""
    lib = load_libseccomp()
    default = action(profile["defaultAction"], profile.get("defaultErrnoRet", errno.EPERM))
    context = lib.seccomp_init(default)
    unknown = []
    for rule in profile["syscalls"]:
        if not applies(rule, GO_ARCHITECTURE.get(platform.machine(), platform.machine())):
            continue
        wanted = action(rule["action"], rule.get("errnoRet", errno.EPERM))
        arguments = (Argument * 6)()
        for i, argument in enumerate(rule.get("args", ())):
            arguments[i] = Argument(argument["index"], COMPARE[argument["op"]], argument["value"],
                                    argument.get("valueTwo", 0))
        for name in rule["names"]:
            number = lib.seccomp_syscall_resolve_name(name.encode())
            if number == -1:  # newer than the library: refused by the default action, as runc does
                unknown.append(name)
            elif name not in without and wanted != default:
                result = lib.seccomp_rule_add_array(context, wanted, number, len(rule.get("args", ())), arguments)
                if result not in (0, -errno.EEXIST, -errno.EDOM):
                    raise OSError(-result, "seccomp rule for %s: %s" % (name, os.strerror(-result)))
    result = lib.seccomp_load(context)  # sets no_new_privs itself
    if result != 0:
        raise OSError(-result, "seccomp_load: " + os.strerror(-result))
    return unknown


def main(args):
    profile, without = args.pop(0), []
    if args[0] == "--without":
        without = args[1].split(",")
        del args[:2]
    assert args.pop(0) == "--", __doc__
    with open(profile) as file:
        install(json.load(file), without)
    os.execvp(args[0], args)


if __name__ == "__main__":
    main(sys.argv[1:])
