"""The numbers of ACL, for the engine and for the emulator: return codes, flags, kinds and bounds."""
