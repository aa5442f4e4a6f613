"""The Debian package: built by cpack, installed by dpkg into a folder of its own, and started from there."""
import glob
import os
import re
import subprocess
import unittest

import harness


class PackageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for tool, package in (("cpack", "cmake"), ("dpkg-shlibdeps", "dpkg-dev"), ("dpkg-deb", "dpkg")):
            if not harness.find(tool):
                raise unittest.SkipTest("%s is not installed (Debian package %s)" % (tool, package))
        if not os.path.exists(os.path.join(harness.BUILD, "CPackConfig.cmake")):
            raise unittest.SkipTest("this build has no package configuration")
        cls.folder = harness.Folder(prefix="embergate-package-")
        harness.run("cpack", "-G", "DEB", "-D", "CPACK_PACKAGE_DIRECTORY=" + cls.folder.name, cwd=harness.BUILD, timeout=100)
        [cls.path] = glob.glob(cls.folder.file("*.deb"))
        cls.root = cls.folder.file("root")
        harness.run("dpkg-deb", "-x", cls.path, cls.root)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def field(self, name):
        return harness.run("dpkg-deb", "-f", self.path, name).stdout.strip()

    def test_control(self):
        architecture = harness.run("dpkg", "--print-architecture").stdout.strip()
        version = harness.run(harness.BINARY, "--version").stdout.split()[-1]
        self.assertEqual(os.path.basename(self.path), "embergate_%s_%s.deb" % (version, architecture))
        self.assertEqual(self.field("Package"), "embergate")
        for package in ("libc6", "liburing2", "libgrpc++"):
            self.assertIn(package, self.field("Depends"))
        control = self.folder.file("control")
        harness.run("dpkg-deb", "-e", self.path, control)
        for script in "postinst", "prerm", "postrm":
            harness.run("sh", "-n", os.path.join(control, script))
        with open(os.path.join(control, "conffiles")) as file:
            for path in file.read().split():
                self.assertTrue(os.path.exists(self.root + path), path)

    def test_files(self):
        for path in ("usr/bin/embergate", "usr/lib/systemd/system/embergate.service", "etc/embergate/embergate.toml",
                     "usr/share/man/man1/embergate.1.gz", "usr/share/bash-completion/completions/embergate",
                     "usr/share/doc/embergate/copyright", "usr/share/embergate/grafana/embergate.json",
                     "usr/share/embergate/prometheus/alerts.yml", "usr/share/embergate/seccomp/embergate.json"):
            self.assertTrue(os.path.exists(os.path.join(self.root, path)), path)
        self.assertEqual(os.listdir(os.path.join(self.root, "usr/bin")), ["embergate"])

    def test_man_page(self):
        page = os.path.join(self.root, "usr/share/man/man1/embergate.1.gz")
        text = harness.run("gzip", "-dc", page).stdout
        for command in re.findall(r"^  ([a-z-]+) ", harness.run(harness.BINARY, "--help").stdout.split("Subcommands:")[1],
                                  re.M):
            self.assertIn('.SS "embergate %s"' % command.replace("-", "\\-"), text)
        self.assertIn("\\-\\-row\\-cache", text)
        if harness.find("groff"):
            result = subprocess.run([harness.find("groff"), "-man", "-Tutf8", "-ww", "-z"], input=text, text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            self.assertEqual((result.returncode, result.stdout), (0, ""))

    def test_completion(self):
        script = os.path.join(self.root, "usr/share/bash-completion/completions/embergate")

        def complete(*words):
            return harness.run("bash", "-c", 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _embergate; '
                               'printf "%s\\n" "${COMPREPLY[@]}"', script, *words).stdout.split()

        self.assertEqual(complete("embergate", "gen"), ["generate"])
        self.assertEqual(complete("embergate", "serve", "--dram"), ["--dram-budget"])
        self.assertEqual(complete("embergate", "plan", "--board"), ["--board", "--board-ram"])

    def test_installed_and_started(self):
        if os.geteuid() != 0:
            self.skipTest("needs root, for dpkg")
        admin = self.folder.file("installed")
        os.makedirs(os.path.join(admin, "var/lib/dpkg/info"))
        for name in ("status", "available"):
            open(os.path.join(admin, "var/lib/dpkg", name), "w").close()
        # Dependencies are those of this machine; the scripts are run by its shell, and keep to $DPKG_ROOT.
        dpkg = ["dpkg", "--root=" + admin, "--force-depends", "--force-script-chrootless", "--log=/dev/null"]
        self.assertIn("systemctl enable --now embergate", harness.run(*dpkg, "--install", self.path).stdout)
        self.assertRegex(harness.run("dpkg", "--root=" + admin, "-l", "embergate").stdout, r"\nii +embergate ")
        self.assertTrue(os.path.isdir(os.path.join(admin, "var/lib/embergate-models")))
        with open(os.path.join(admin, "usr/lib/systemd/system/embergate.service")) as file:
            command = re.search(r"^ExecStart=(.*)$", file.read(), re.M).group(1).split()
        settings = os.path.join(admin, "etc/embergate/embergate.toml")
        with open(settings) as file:
            text = file.read()
        with open(settings, "w") as file:
            file.write(text.replace("/var/lib/embergate-models/model.gguf", harness.model()))
        self.assertEqual(command, ["/usr/bin/embergate", "serve", "--config", "/etc/embergate/embergate.toml"])
        binary, harness.BINARY = harness.BINARY, admin + command[0]
        try:
            with harness.Server("--config", settings, "--context", "160") as server:
                server.generate()
                self.assertEqual(server.stop(), 0)
        finally:
            harness.BINARY = binary
        harness.run(*dpkg, "--purge", "embergate")
        left = [os.path.join(folder, name) for folder, _, names in os.walk(admin) for name in names
                if "/var/lib/dpkg/" not in folder + "/"]
        self.assertEqual(left, [])


if __name__ == "__main__":
    harness.main()
