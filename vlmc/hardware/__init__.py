"""Hardware: devices as data files."""

from vlmc.hardware.device import BYTES, Device, device, names

__all__ = ["BYTES", "Device", "device", "names"]
