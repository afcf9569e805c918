/* gptloom: training GPT-style transformers in C. Include this, link libgptloom (pkg-config gptloom). */
#ifndef GPTLOOM_H
#define GPTLOOM_H

#include "gptloom/error.h"
#include "gptloom/tensor.h"
#include "gptloom/arena.h"
#include "gptloom/random.h"
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
