/* gptloom: training GPT-style transformers in C. Include this, link libgptloom (pkg-config gptloom).
 *
 * What is promised: until 1.0, headers and library are of one version. The library is static, and a program is compiled
 * anew with each version: structs grow and functions change between versions, which dev/docs/CHANGELOG.md says. Nothing
 * is promised of symbols that no header here declares. Files are another matter: what an earlier version wrote (runs,
 * checkpoints, config files) is read by later ones, each by the format version that it carries. */
#ifndef GPTLOOM_H
#define GPTLOOM_H

/* The version of these headers, and of the library that belongs to them. */
#define GPTLOOM_VERSION "0.1.0"

#include "gptloom/error.h"
#include "gptloom/tensor.h"
#include "gptloom/arena.h"
#include "gptloom/ops.h"
#include "gptloom/device.h"
#include "gptloom/comm.h"
#include "gptloom/model.h"
#include "gptloom/optim.h"
#include "gptloom/data.h"
#include "gptloom/checkpoint.h"
#include "gptloom/plan.h"
#include "gptloom/train.h"

#endif
