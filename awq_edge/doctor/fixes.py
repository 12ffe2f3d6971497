"""The command that mends something, right for the machine that it is printed for.

Who types it: root needs no sudo, and a container often has none; a user whom sudo does not let in
is told whom to ask. Where: a container's missing parts belong to its host or its image, WSL's to
Windows. With which Python: the running one, unless it cannot see the packages it needs, or must not
be changed.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from awq_edge.device.jetson import JetPack, read_modules
from awq_edge.doctor.machine import Machine
from awq_edge.doctor.setting import (
    WSL_DRIVER,
    cuda_major,
    distribution,
    in_container,
    jetpack,
    on_jetson,
    pci_gpus,
    wsl,
)
from awq_edge.recipe.files import recipe_names
from awq_edge.recipe.recipes import Recipe

_OLDEST_JETPACK = 6  # that a recipe is for
_MODULES = (
    "p3767",
    "p3701",
    "p3834",
)  # Orin Nano and NX, AGX Orin, Thor: those with JetPack 6 or 7
_ASK = "ask who administers this machine"
_OTHER_JETPACK = "-jetpack6"  # at the end of a recipe's name
_ENVIRONMENT = "~/awq-edge-env"
_NEW_PYTHONS = ("python3.12", "python3.13", "python3.11", "python3.10")
_APT_SOURCE = "/etc/apt/sources.list.d/nvidia-l4t-apt-source.list"
# torch for a Jetson's GPU, by JetPack's major version: PyPI's wheels for Arm have no CUDA for it.
_JETSON_WHEELS = {
    6: "https://pypi.jetson-ai-lab.io/jp6/cu126",
    7: "https://pypi.jetson-ai-lab.io/sbsa/cu130",
}
# cuda.h, CUresult: what cuInit answers, and what it means to somebody who wants a GPU.
NO_DEVICE, UNKNOWN, MISMATCH, NOT_PERMITTED = 100, 999, 803, 800
_PERMISSION_FILES = ("/dev/nvmap", "/dev/nvidiactl", "/dev/dri/renderD128")


def as_root(machine: Machine, *commands: str) -> str:
    """Commands that root types, one after the other, for the user who reads them."""
    if in_container(machine) and machine.is_root:
        is_apt = any(command.startswith("apt install") for command in commands)
        fresh = ("apt update",) if is_apt and "apt update" not in commands else ()  # no lists yet
        return " && ".join([*fresh, *commands])
    joined = " && ".join(
        commands if machine.is_root else [f"sudo {command}" for command in commands]
    )
    if machine.is_root or machine.may_sudo:
        return joined
    return f"{_ASK}: {joined}"


def sequence(*steps: str) -> str:
    """Steps one after the other, some of which may need another person."""
    return ("; then " if any(step.startswith(_ASK) for step in steps) else " && ").join(steps)


def on_host(machine: Machine, *commands: str) -> str:
    """Commands of root on a container's host, or on this machine where it is no container."""
    if in_container(machine):
        return "on the container's host: " + " && ".join(f"sudo {command}" for command in commands)
    return as_root(machine, *commands)


def pip(machine: Machine, *requirements: str) -> str:
    """Install into the Python that runs, or into a new environment where the distribution keeps pip
    out of it."""
    quoted = " ".join(_quoted(requirement) for requirement in requirements)
    python = machine.python
    if python.managed:
        return f"{new_environment(machine)} && {_ENVIRONMENT}/bin/python -m pip install {quoted}"
    executable = shlex.quote(python.executable)
    if not python.pip:  # uv makes environments without it
        return f"uv pip install --python {executable} {quoted}"
    return f"{executable} -m pip install {quoted}"


def pip_uninstall(machine: Machine, distribution: str) -> str:
    """Take a package out of the Python that runs."""
    executable = shlex.quote(machine.python.executable)
    if not machine.python.pip:
        return f"uv pip uninstall --python {executable} {distribution}"
    return f"{executable} -m pip uninstall {distribution}"


def new_environment(machine: Machine) -> str:
    """Make an environment of the system's Python, which on a Jetson sees JetPack's packages."""
    sees = " --system-site-packages" if on_jetson(machine) else ""
    made = f"/usr/bin/python3 -m venv{sees} {_ENVIRONMENT}"
    if machine.python.base == "/usr" and not machine.has_module("ensurepip"):
        return sequence(as_root(machine, "apt install python3-venv"), made)
    return made


def python(machine: Machine) -> str:
    """A Python of a version that is tested."""
    facts = machine.python
    if facts.conda:
        return "conda create -n awq-edge python=3.12"
    if on_jetson(machine):
        return new_environment(machine)
    for name in _NEW_PYTHONS:
        if (machine.root / "usr/bin" / name).exists():
            return f"/usr/bin/{name} -m venv {_ENVIRONMENT}"
    if "/.pyenv/" in facts.base:
        return f"pyenv install 3.12 && PYENV_VERSION=3.12 python -m venv {_ENVIRONMENT}"
    return f"uv venv --python 3.12 {_ENVIRONMENT}"


def jetson_packages(machine: Machine) -> str:
    """JetPack's own packages."""
    if in_container(machine):
        return "start an image that has JetPack's packages: docs/jetson.Dockerfile makes one"
    return as_root(machine, "apt update", "apt install nvidia-jetpack")


def on_board(recipe: Recipe) -> str:
    """The place for build and run, where a Jetson's recipe is exported on another machine."""
    return f"build and run on the board of {recipe.name}"


def is_before_orin_s_jetpack(machine: Machine) -> bool:
    """True if this is a Jetson whose JetPack is older than every recipe's."""
    installed = jetpack(machine)
    return on_jetson(machine) and installed is not None and installed.major < _OLDEST_JETPACK


def other_jetpack(recipe: Recipe) -> str:
    """The same device's recipe for the other JetPack."""
    name = recipe.name.removesuffix(_OTHER_JETPACK)
    name = name if name != recipe.name else f"{name}{_OTHER_JETPACK}"
    if name in recipe_names():
        return f"awq-edge export MODEL --recipe {name}"
    return "awq-edge export MODEL --recipe NAME  # `awq-edge recipes` lists them with their JetPack"


def newer_cuda(machine: Machine, recipe: Recipe) -> str:
    """Another recipe: a Jetson's CUDA comes with JetPack."""
    if is_before_orin_s_jetpack(machine):
        return newer_jetpack(machine, jetpack(machine))
    return other_jetpack(recipe) if on_jetson(machine) else driver(machine, old=True)


def newer_jetpack(machine: Machine, installed: JetPack | None) -> str:
    """The update from a JetPack that is too old."""
    if installed is not None and installed.major == 6:
        steps = (
            f"sed -i 's/ r36\\.[0-9]* / r36.4 /' {_APT_SOURCE}",
            "apt update",
            "apt dist-upgrade",
            "apt install nvidia-jetpack",
        )
        where = "on the board" if in_container(machine) else ""
        return " ".join(filter(None, [where, on_host(machine, *steps), "# and reboot"]))
    modules = read_modules(machine.root)
    if modules and not any(module.startswith(_MODULES) for module in modules):
        return "--recipe cpu: no JetPack 6 was made for this board"
    if any(module.startswith("p3834") for module in modules):
        return "flash the board with JetPack 7.2 or newer (NVIDIA's SDK Manager)"
    return "flash the board with JetPack 6.2 or newer (NVIDIA's SDK Manager)"


def jetson_python(machine: Machine, recipe: Recipe) -> str:
    """An environment of the system's Python, which alone sees JetPack's TensorRT: those of pyenv,
    conda and uv never do."""
    installed = " ".join(_quoted(package) for package in device_layer_packages(machine, recipe))
    return f"{new_environment(machine)} && {_ENVIRONMENT}/bin/python -m pip install {installed}"


def device_layer_packages(machine: Machine, recipe: Recipe) -> tuple[str, ...]:
    """cuda-python for the driver's CUDA: a newer major version does not start."""
    major = cuda_major(machine, recipe.runtime.cuda_version)
    extra = "jetson" if on_jetson(machine) else "rtx"
    pinned = () if major is None else (f"cuda-python=={major}.*",)
    if extra == "rtx" and major is not None and major < 13:
        return ("awq-edge", *pinned)  # the extra asks for 13
    return (f"awq-edge[{extra}]", *(pinned if extra == "jetson" else ()))


def torch(machine: Machine) -> str:
    """The install of a torch that runs on this GPU."""
    installed = jetpack(machine)
    wheels = _JETSON_WHEELS.get(installed.major) if installed is not None else None
    if not on_jetson(machine):
        return pip(machine, "awq-edge[cuda]")
    if wheels is None:
        return "no wheel of torch is known for this JetPack: --runtime onnxruntime, or tensorrt"
    return pip(machine, "torch", f"--index-url={wheels}")


def driver(machine: Machine, *, old: bool = False) -> str:
    """NVIDIA's driver, or the way to let it see the GPU. old: it is there, and too old."""
    if wsl(machine) is not None:
        return _wsl_driver(machine, old)
    if on_jetson(machine):
        return _jetson_driver(machine)
    if in_container(machine):
        return (
            "update the driver on the container's host" if old else
            "start the container with --gpus all (its host needs the driver and "
            "nvidia-container-toolkit)"
        )  # fmt: skip
    if old:
        return _install_driver(machine)
    return _asleep_or_missing(machine)


def _wsl_driver(machine: Machine, old: bool) -> str:
    if wsl(machine) == 1:
        return "in Windows' PowerShell: wsl --set-version DISTRIBUTION 2  # WSL 1 has no GPU"
    windows = (machine.root / WSL_DRIVER.lstrip("/")).exists()
    hiding = sorted((machine.root / "usr/lib/x86_64-linux-gnu").glob("libcuda.so.1*"))
    if windows and hiding and not old:  # a Linux driver inside, found before Windows' own
        return as_root(machine, "apt purge '^libnvidia-compute-.*'") + "  # the driver is Windows'"
    return (
        "install the newest NVIDIA driver in Windows (none inside WSL), then in PowerShell: "
        "wsl --update && wsl --shutdown"
    )


def _jetson_driver(machine: Machine) -> str:
    if in_container(machine):
        return (
            "start the container with --runtime nvidia, and with --gpus all where its image does "
            "not set NVIDIA_VISIBLE_DEVICES"
        )
    if any(machine.can_open(path) is False for path in _PERMISSION_FILES):
        return as_root(machine, "usermod -aG video,render $USER") + "  # and log in again"
    return as_root(machine, "apt install --reinstall nvidia-l4t-cuda") + "  # and reboot"


def _asleep_or_missing(machine: Machine) -> str:
    """The fix for a machine that is no container: the GPU's state on the PCI bus decides."""
    if _hides_gpus(machine):
        return "unset CUDA_VISIBLE_DEVICES  # it hides the GPU"
    gpus, status = pci_gpus(machine), machine.cuda_status()
    bound = [gpu for gpu in gpus if gpu.driver == "nvidia"]
    if any(gpu.driver == "vfio-pci" for gpu in gpus):
        return "the GPU is handed to a virtual machine (vfio-pci): take it back, or run there"
    if bound and status == UNKNOWN:  # as after a suspend
        return as_root(machine, "modprobe -r nvidia_uvm", "modprobe nvidia_uvm")
    if bound and status is not None:
        return "reboot  # the driver's module and its libraries are of two versions, or it hangs"
    profile = (machine.run(["prime-select", "query"]) or "").strip()
    if profile == "intel":  # the GPU of a hybrid laptop is switched off
        return as_root(machine, "prime-select on-demand") + "  # and reboot"
    mode = (machine.run(["supergfxctl", "--get"]) or "").strip()
    if mode == "Integrated":
        return "supergfxctl --mode Hybrid  # and log in again"
    if (machine.run(["envycontrol", "--query"]) or "").strip() == "integrated":
        return as_root(machine, "envycontrol -s hybrid") + "  # and reboot"
    if not gpus:
        return "awq-edge export MODEL --recipe cpu  # no NVIDIA GPU is on the PCI bus"
    return _install_driver(machine)


def _hides_gpus(machine: Machine) -> bool:
    visible = machine.environment.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in ("", "-1", "NoDevFiles")


def _install_driver(machine: Machine) -> str:
    commands = {
        "ubuntu": ("ubuntu-drivers install",),
        "debian": ("apt install nvidia-driver",),
        "fedora": ("dnf install akmod-nvidia xorg-x11-drv-nvidia-cuda",),
        "arch": ("pacman -Syu nvidia-open",),
    }.get(distribution(machine))
    if commands is None:
        return "install NVIDIA's driver (nvidia.com/drivers) and reboot"
    sources = {"debian": " (from non-free)", "fedora": " (from RPM Fusion)"}
    return as_root(machine, *commands) + "  # and reboot" + sources.get(distribution(machine), "")


def compiler(machine: Machine, missing: Sequence[str]) -> str:
    """The tools that build-plugins lacks. missing: by `toolchain.missing_tools`' names."""
    from_apt = [tool for tool in missing if tool != "nvcc"]
    steps = []
    if on_jetson(machine):
        if "nvcc" in missing:
            steps.append(jetson_packages(machine))
        if from_apt:
            steps.append(as_root(machine, f"apt install {' '.join(from_apt)}"))
        return sequence(*steps)
    if set(missing) - {"g++"}:
        steps.append(pip(machine, "awq-edge[build]"))
    if "g++" in missing:
        commands = {"fedora": "dnf install gcc-c++", "arch": "pacman -S gcc"}
        steps.append(as_root(machine, commands.get(distribution(machine), "apt install g++")))
    return sequence(*steps)


def _quoted(requirement: str) -> str:
    """A requirement as a shell takes it: quoted only if it has brackets or stars."""
    special = set(requirement) & set("[]*<>=!") and "://" not in requirement
    return f"'{requirement}'" if special else requirement
