"""When conversations begin: a closed loop, or an open one."""
