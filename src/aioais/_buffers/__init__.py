"""What a request needs on the device and on the host: slots, their pool, and the ACL calls that use them."""
