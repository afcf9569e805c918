# gptloom. A new user's two commands:
#     make run     sets up what is missing, builds, gets real text, trains a GPT, shows its loss and a sample
#     make test    sets up what is missing, builds, runs the tests
# make help lists the rest.

VERSION := 0.1.0
BUILD   ?= build
PREFIX  ?= /usr/local
CC      ?= gcc
CXX     ?= g++

# The machine to compile for; the program's bits are those of one build on one machine.
ARCH    ?= native
# Matrix products: auto takes oneDNN, else OpenBLAS, else our own plain C.
MATMUL  ?= auto
# address,undefined for a sanitizer build; keep it in a build folder of its own (make sanitize does).
SANITIZE ?=

# ------------------------------------------------------------------------------------------------- what is installed
links = $(shell echo 'int main(void) { return 0; }' | $(CC) -include $(1) -x c - $(2) -o /dev/null 2>/dev/null && echo yes)
ifeq ($(MATMUL),auto)
    ifeq ($(call links,oneapi/dnnl/dnnl.h,$(DNNL_CFLAGS) $(DNNL_LIBS) -ldnnl),yes)
        override MATMUL := onednn
    else ifeq ($(call links,cblas.h,-lopenblas),yes)
        override MATMUL := openblas
    else
        override MATMUL := plain
    endif
endif

MATMUL_LIBS_onednn   := $(DNNL_LIBS) -ldnnl
MATMUL_LIBS_openblas := -lopenblas
MATMUL_LIBS := $(MATMUL_LIBS_$(MATMUL))

# --------------------------------------------------------------------------------------------------------- compiling
SANITIZE_FLAGS := $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer -DLOOM_DEBUG_FILL)
WARNINGS := -Wall -Wextra -Werror -Wvla -Wshadow
COMMON   := -O3 -g -march=$(ARCH) -ffp-contract=fast -fopenmp -fno-math-errno -fno-trapping-math \
            $(WARNINGS) $(SANITIZE_FLAGS) -Iinclude -Icsrc -DLOOM_VERSION='"$(VERSION)"' -MMD -MP
CFLAGS_  := -std=c11 -D_GNU_SOURCE $(COMMON) -Wstrict-prototypes -Wmissing-prototypes $(DNNL_CFLAGS) $(CFLAGS)
CXXFLAGS_ := -std=c++17 $(COMMON) $(CXXFLAGS)
LIBS     := $(MATMUL_LIBS) -lcjson -linih -lxxhash -lm -lpthread

# ------------------------------------------------------------------------------------------------------------- sources
# csrc/cpu's ops are compiled twice, in float (the definition) and in double (the oracle); what makes a CPU device of
# them, and what is tuned beyond them, once.
PRODUCT_onednn   := csrc/cpu/matmul_library.c csrc/cpu/product_onednn.c
PRODUCT_openblas := csrc/cpu/matmul_library.c csrc/cpu/product_openblas.c
PRODUCT_plain    := csrc/cpu/matmul_plain.c
TUNED      := csrc/cpu/device.c csrc/cpu/peak.c $(PRODUCT_$(MATMUL))
DEFINITION := $(filter-out csrc/cpu/device.c csrc/cpu/peak.c csrc/cpu/matmul_% csrc/cpu/product_%,$(wildcard csrc/cpu/*.c))
HOST       := $(filter-out csrc/cpu/%,$(wildcard csrc/*/*.c))
# The step, the trainer and the run are part of the library; the rest of train/ is the program.
TRAIN_LIB  := $(addprefix train/,step.c trainer.c run.c options.c)
PROGRAM    := $(filter-out $(TRAIN_LIB),$(wildcard train/*.c)) $(wildcard test/ops/*.c)

LIB_OBJECTS := $(HOST:%.c=$(BUILD)/obj/%.o) $(TRAIN_LIB:%.c=$(BUILD)/obj/%.o) $(TUNED:%.c=$(BUILD)/obj/%.o) \
               $(DEFINITION:csrc/cpu/%.c=$(BUILD)/obj/definition/%.o) $(DEFINITION:csrc/cpu/%.c=$(BUILD)/obj/oracle/%.o)
PROGRAM_OBJECTS := $(PROGRAM:%.c=$(BUILD)/obj/%.o)
CASE_OBJECTS    := $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard test/ops/*.c))
TESTS           := $(patsubst test/%.cpp,$(BUILD)/test/%,$(wildcard test/test_*.cpp))

# One short line per file; V=1 shows the commands.
V ?= 0
quiet = $(if $(filter 0,$(V)),@echo "  $(1) $@" &&,)

.PHONY: all help run test test-full check sanitize format install clean setup
all: $(BUILD)/gptloom $(BUILD)/libgptloom.a

help:
	@sed -n 's/^#  \(make [a-z-]*\)/  \1/p' Makefile

$(BUILD)/libgptloom.a: $(LIB_OBJECTS)
	@rm -f $@
	$(call quiet,AR) $(AR) rcs $@ $^

$(BUILD)/gptloom: $(PROGRAM_OBJECTS) $(BUILD)/libgptloom.a
	$(call quiet,LD) $(CC) $(CFLAGS_) -o $@ $^ $(LIBS)

$(BUILD)/obj/definition/%.o: csrc/cpu/%.c
	@mkdir -p $(@D)
	$(call quiet,CC) $(CC) $(CFLAGS_) -c $< -o $@

$(BUILD)/obj/oracle/%.o: csrc/cpu/%.c
	@mkdir -p $(@D)
	$(call quiet,CC) $(CC) $(CFLAGS_) -DLOOM_ORACLE -c $< -o $@

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call quiet,CC) $(CC) $(CFLAGS_) -Itest -c $< -o $@

$(BUILD)/obj/%.o: %.cpp
	@mkdir -p $(@D)
	$(call quiet,CXX) $(CXX) $(CXXFLAGS_) -Itest -c $< -o $@

$(BUILD)/test/%: $(BUILD)/obj/test/%.o $(CASE_OBJECTS) $(BUILD)/libgptloom.a
	@mkdir -p $(@D)
	$(call quiet,LD) $(CXX) $(CXXFLAGS_) -o $@ $^ -lgtest -lgtest_main $(LIBS)

clean:
	rm -rf $(BUILD)

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
