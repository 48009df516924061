#pragma once
// Files that may not be read, for tests that run as root.

#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/error.h"

namespace lacuna {

/// While alive, file permissions hold for this thread, even if it is root's.
class WithoutPrivileges {
 public:
  WithoutPrivileges() {
    get(before_);
    __user_cap_data_struct without[2] = {before_[0], before_[1]};
    without[0].effective &= ~(1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH);
    set(without);
  }
  ~WithoutPrivileges() { set(before_); }
  WithoutPrivileges(const WithoutPrivileges&) = delete;
  WithoutPrivileges& operator=(const WithoutPrivileges&) = delete;

 private:
  void get(__user_cap_data_struct* data) { check(::syscall(SYS_capget, &header_, data) == 0, "capget failed"); }
  void set(const __user_cap_data_struct* data) { ::syscall(SYS_capset, &header_, data); }

  __user_cap_header_struct header_{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct before_[2]{};
};

}  // namespace lacuna
