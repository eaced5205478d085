#!/bin/sh
# On each VMware ESX host, before its first login: both paths by ALUA, reads and writes over the one to the node that serves.
esxcli storage nmp satp rule add --satp VMW_SATP_ALUA --psp VMW_PSP_RR --vendor GEMEL --model VOLUME --claim-option tpgs_on
