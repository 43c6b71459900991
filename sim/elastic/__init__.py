"""Engines that change while they serve: devices come, go and fail.

`copies` tells from two formations which bytes go from where to where, `graph` runs a reconfiguration as tasks on ports,
disks and devices, `methods` are its programs; `formations` makes the engine of any set of devices, `fleet` carries
changes out on the timeline of a load, `controller` decides on them, `measures` says what they brought and cost.
"""
