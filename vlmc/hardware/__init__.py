"""Hardware: devices as data files."""

from vlmc.hardware.device import BYTES, BadDevice, Device, device, is_file, names

__all__ = ["BYTES", "BadDevice", "Device", "device", "is_file", "names"]
