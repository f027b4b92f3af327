"""Builds the native core with nothing but a C++17 compiler; all metadata is in setup.cfg.

The libraries are plain shared objects behind a C interface (no Python headers, no TensorFlow), therefore one wheel
serves every Python and TensorFlow: py3-none-<platform>.

    python setup.py build_native --inplace      for work in the checkout
    SANITIZE=address,undefined | thread, DEBUG=1, CXX, CXXFLAGS and LDFLAGS are honoured
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1 cannot make wheels, but builds in place all the same
    bdist_wheel = None

ROOT = Path(__file__).resolve().parent
NATIVE = Path("tfdist") / "native"
IS_MACOS = sys.platform == "darwin"
SUFFIX = ".dylib" if IS_MACOS else ".so"
# Library name -> the source folders it is made of, in link order.
LIBRARIES = {
    "tfdist_core": ("common", "transport", "elastic", "engine", "parameter_server"),
    "tfdist_tensorflow": ("tensorflow_ops",),
}


def find_sources(library):
    """Returns the library's sources, relative to the checkout, in a stable order."""
    return sorted(
        path.relative_to(ROOT) for folder in LIBRARIES[library] for path in (ROOT / NATIVE / folder).rglob("*.cc")
    )


def find_headers():
    return sorted(path.relative_to(ROOT) for path in (ROOT / NATIVE).rglob("*.h"))


def find_compiler():
    """Returns the compiler's command line, or ends with one line that says what to install."""
    command = shlex.split(os.environ.get("CXX") or "g++")
    if shutil.which(command[0]) is None:
        raise SystemExit(
            f"tfdist: expected a C++17 compiler to build the native core. Received: CXX={command[0]}, which is not on "
            "the PATH. Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: "
            "xcode-select --install) or name yours in CXX."
        )
    return command


def compile_flags():
    """Returns the flags of every source.

    The instruction set stays the platform's baseline, the wheel runs anywhere; common/kernels.h chooses at run time.
    """
    flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra", f"-I{NATIVE}"]
    # A fused multiply-add rounds once less: hosts of different processors would disagree.
    # Nobody reads errno after sqrt, and loops that would have to set it are not vectorised.
    flags += ["-ffp-contract=off", "-fno-math-errno"]
    sanitize, debug = os.environ.get("SANITIZE"), os.environ.get("DEBUG")
    if sanitize or debug:
        flags += ["-g", "-O1", "-fno-omit-frame-pointer"]
    else:
        flags += ["-O3", "-DNDEBUG"]
    if sanitize:
        flags += [f"-fsanitize={sanitize}"]
    return flags + shlex.split(os.environ.get("CXXFLAGS", ""))


def link_flags(library, folder):
    """Returns the linker's flags; the operations find the core beside themselves, TensorFlow's C API at load."""
    sanitize, debug = os.environ.get("SANITIZE"), os.environ.get("DEBUG")
    if IS_MACOS:
        flags = ["-dynamiclib", f"-Wl,-install_name,@rpath/lib{library}{SUFFIX}", "-Wl,-rpath,@loader_path"]
        flags += ["-Wl,-undefined,dynamic_lookup"] if library != "tfdist_core" else []
        flags += [] if sanitize or debug else ["-Wl,-x"]
    else:
        flags = ["-shared", f"-Wl,-soname,lib{library}{SUFFIX}", "-Wl,-rpath,$ORIGIN"]
        flags += ["-Wl,-z,defs"] if library == "tfdist_core" and not sanitize else []
        flags += [] if sanitize or debug else ["-Wl,--strip-all"]
    if library != "tfdist_core":
        flags += [f"-L{folder}", "-ltfdist_core"]
    flags += [f"-fsanitize={sanitize}"] if sanitize else []
    return flags + ["-pthread"] + shlex.split(os.environ.get("LDFLAGS", ""))


class BuildNative(Command):
    """Compiles libtfdist_core and libtfdist_tensorflow, only what changed, on all cores."""

    description = "build the native core (a C++17 compiler is all it needs)"
    user_options = [
        ("inplace", "i", "put the libraries into the checkout's tfdist/native"),
        ("build-lib=", "b", "folder that receives tfdist/native/*"),
        ("build-temp=", "t", "folder of the object files"),
    ]
    boolean_options = ["inplace"]

    def initialize_options(self):
        self.inplace = False
        self.editable_mode = False
        self.build_lib = None
        self.build_temp = None

    def finalize_options(self):
        self.set_undefined_options("build", ("build_lib", "build_lib"), ("build_temp", "build_temp"))

    def run(self):
        os.chdir(ROOT)
        compiler = find_compiler()
        folder = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib)) / NATIVE
        folder.mkdir(parents=True, exist_ok=True)
        for library in LIBRARIES:
            sources = find_sources(library)
            if not sources:
                raise SystemExit(
                    f"tfdist: expected C++ sources of {library}. Received: none in "
                    f"{', '.join(str(NATIVE / name) for name in LIBRARIES[library])}. Take a complete checkout."
                )
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(lambda source: self._compile(compiler, source), sources))
            self._link(compiler, library, objects, folder)

    def _compile(self, compiler, source):
        flavour = "-".join(filter(None, ("native", os.environ.get("SANITIZE"), os.environ.get("DEBUG") and "debug")))
        target = Path(self.build_temp) / flavour / source.with_suffix(".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        inputs = [source, *find_headers(), Path("setup.py")]
        command = [*compiler, *compile_flags(), "-c", str(source), "-o", str(target)]
        record = target.with_suffix(".command")
        if (
            not target.exists()
            or not record.exists()
            or record.read_text() != shlex.join(command)
            or max(path.stat().st_mtime for path in inputs) >= target.stat().st_mtime
        ):
            run_tool(command)
            record.write_text(shlex.join(command))
        return target

    def _link(self, compiler, library, objects, folder):
        # Renamed into place: a process that has the old file mapped keeps a whole one.
        target = folder / f"lib{library}{SUFFIX}"
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        run_tool([*compiler, *map(str, objects), "-o", str(partial), *link_flags(library, folder)])
        os.replace(partial, target)

    def get_source_files(self):
        sources = [path for library in LIBRARIES for path in find_sources(library)]
        return [str(path) for path in [*sources, *find_headers()]]

    def get_outputs(self):
        folder = NATIVE if self.inplace or self.editable_mode else Path(self.build_lib) / NATIVE
        return [str(folder / f"lib{library}{SUFFIX}") for library in LIBRARIES]

    def get_output_mapping(self):
        return {}


def run_tool(command):
    print(shlex.join(command), flush=True)
    if subprocess.call(command) != 0:
        raise SystemExit(
            f"tfdist: the compiler failed on {platform.machine()}; its messages are above. Command: {shlex.join(command)}"
        )


class PlatformDistribution(Distribution):
    """Not pure Python, although without extension modules: the wheel's files belong to the platform."""

    def has_ext_modules(self):
        return True


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]


def make_bdist_wheel():
    """Returns a bdist_wheel that tags for the platform alone: no interface of Python or TensorFlow is touched."""

    class BdistWheel(bdist_wheel):
        def get_tag(self):
            return "py3", "none", super().get_tag()[2]

    return BdistWheel


commands = {"build": Build, "build_native": BuildNative}
if bdist_wheel is not None:
    commands["bdist_wheel"] = make_bdist_wheel()
setup(cmdclass=commands, distclass=PlatformDistribution)
