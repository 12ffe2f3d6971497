"""The surroundings of a machine's Python: a board, a container, WSL, a laptop whose GPU is off."""

from __future__ import annotations

import re
from dataclasses import dataclass

from awq_edge.device.jetson import (
    JetPack,
    is_jetson,
    jetpack_of,
    read_jetpack_package,
    read_release,
)
from awq_edge.device.system_files import read_text
from awq_edge.doctor.machine import Machine

WSL_DRIVER = "/usr/lib/wsl/lib/libcuda.so.1"  # Windows' driver, which WSL 2 mounts
_NVIDIA = "0x10de"  # PCI: vendor
_DISPLAY = "0x03"  # PCI: class of GPUs
_BUILT_IN_GPUS = ("Orin", "Thor")  # CUDA's names, where a container shows nothing else of a board


@dataclass(frozen=True)
class PciGpu:
    """An NVIDIA GPU as the PCI bus has it, whatever its driver says."""

    slot: str
    driver: str | None  # of the kernel, None where it has none
    asleep: bool  # switched off to save power, until a program asks for it


def in_container(machine: Machine) -> bool:
    """True in Docker, Podman, LXC or Kubernetes."""
    if machine.environment.get("container") or "KUBERNETES_SERVICE_HOST" in machine.environment:
        return True
    if any((machine.root / marker).exists() for marker in (".dockerenv", "run/.containerenv")):
        return True
    groups = machine.read("proc/1/cgroup") or ""
    return re.search(r"/(docker|lxc|kubepods|containerd)", groups) is not None


def wsl(machine: Machine) -> int | None:
    """The version, 1 or 2, of the Windows Subsystem for Linux; None elsewhere."""
    release = machine.read("proc/sys/kernel/osrelease") or ""
    if "microsoft" not in release.lower():
        return None
    return 1 if re.search(r"Microsoft", release) and "WSL2" not in release else 2


def on_jetson(machine: Machine) -> bool:
    """True on a Jetson, or in a container on one that shows as much as the GPU's name."""
    if is_jetson(machine.root):
        return True
    gpu = machine.gpu()
    return gpu is not None and gpu.name in _BUILT_IN_GPUS


def jetpack(machine: Machine) -> JetPack | None:
    """A Jetson's JetPack by its package; in a container or without the package by Jetson Linux.
    None elsewhere, and for an unknown one."""
    package = None if in_container(machine) else read_jetpack_package(machine.root)
    installed = None if package is None else jetpack_of(package)
    release = read_release(machine.root)
    of_release = None if release is None else release.jetpack
    if installed is None or (of_release is not None and of_release.major != installed.major):
        return of_release  # a package that is left of an update is not what runs
    return installed


def cuda_major(machine: Machine, fallback: str | None) -> int | None:
    """The CUDA of this machine's driver, else JetPack's, else `fallback`'s ("13.2")."""
    gpu, installed = machine.gpu(), jetpack(machine)
    known = (gpu and gpu.cuda) or (installed and installed.cuda) or fallback
    return None if known is None else int(known.partition(".")[0])


def pci_gpus(machine: Machine) -> list[PciGpu]:
    """NVIDIA's GPUs on the PCI bus; a Jetson's is not there, nor WSL's."""
    folder = machine.root / "sys/bus/pci/devices"
    try:
        devices = sorted(folder.iterdir())
    except OSError:
        return []
    gpus = []
    for device in devices:
        kind = read_text(device / "class") or ""
        if read_text(device / "vendor") == _NVIDIA and kind.startswith(_DISPLAY):
            driver = device / "driver"
            name = driver.readlink().name if driver.is_symlink() else None
            asleep = read_text(device / "power/runtime_status") == "suspended"
            gpus.append(PciGpu(device.name, name, asleep))
    return gpus


def distribution(machine: Machine) -> str:
    """The distribution by /etc/os-release: "ubuntu", "debian", "fedora", ...; for one that is like
    Ubuntu or Debian, that one; "" where the file does not say."""
    text = machine.read("etc/os-release") or ""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    names = [fields.get("ID", ""), *fields.get("ID_LIKE", "").split()]
    known = [name for name in names if name in ("ubuntu", "debian", "fedora", "arch")]
    return str([*known, *names][0])
