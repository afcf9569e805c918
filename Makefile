# gptloom. A new user's two commands:
#     make run     sets up what is missing, builds, gets real text, trains a GPT, shows its loss and a sample
#     make test    sets up what is missing, builds, runs the tests
# `make help` lists the rest.

.DEFAULT_GOAL := all
VERSION := $(shell sed -n 's/^.define GPTLOOM_VERSION "\(.*\)"/\1/p' include/gptloom/gptloom.h)
comma   := ,
BUILD   ?= build
PREFIX  ?= /usr/local
ifeq ($(origin CC),default)
    CC := gcc
endif
ifeq ($(origin CXX),default)
    CXX := g++
endif

# As many jobs as there are processors, unless -j says otherwise.
ifeq ($(filter -j% --jobs%,$(MAKEFLAGS)),)
    MAKEFLAGS += --jobs=$(shell nproc)
endif

# The machine to compile for, as native, where it is not to be any of its architecture. What is worth it is compiled for
# several sets of instructions in any case, of which the program takes the best that its processor has.
ARCH    ?=
# The library for matrix products beside our own: auto takes oneDNN, else OpenBLAS, else none (plain).
MATMUL  ?= auto
# CUDA: the toolkit's folder, found by its nvcc; empty where there is none, and then only the emulation has CUDA. The
# GPUs to build for: compute capabilities, 80 to 120; later ones compile the lowest one's PTX when they start.
NVCC      ?= $(shell command -v nvcc 2>/dev/null || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
CUDA      ?= $(patsubst %/bin/nvcc,%,$(lastword $(NVCC)))
CUDA_ARCH ?= 80 90
# cuDNN's header, which may lie inside a Python package; the library itself is loaded when it is asked for.
CUDNN_INCLUDE ?= $(if $(CUDA),$(shell dev/find-cudnn.sh $(CUDA)))
# MPI's compiler (Open MPI's). Where it is, libgptloom_mpi.so is built, which the communicator of that name loads.
MPICC ?= $(shell command -v mpicc 2>/dev/null)
# Headers and libraries of cJSON and xxHash where they are not installed (dev/third-party.sh collects them).
THIRD_PARTY ?= $(wildcard third-party)
# address,undefined for a sanitizer build; keep it in a build folder of its own (make sanitize does).
SANITIZE ?=
# Warnings, and register spills in kernels, are errors where CI is set, or with STRICT=1: another compiler than ours may
# warn of what ours does not, and that is no reason to have no program.
STRICT ?= $(CI)

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
# Sanitizers make gcc see null pointers in snprintf where there are none.
SANITIZE_FLAGS := $(if $(SANITIZE),-O1 -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer \
                    -Wno-format-truncation -DLOOM_DEBUG_FILL)
WARNINGS := -Wall -Wextra -Wno-missing-field-initializers -Wvla -Wshadow $(if $(STRICT),-Werror)
MARCH    := $(addprefix -march=,$(ARCH))
COMMON   := -O3 -g $(MARCH) -ffp-contract=off -fopenmp -fno-math-errno -fno-trapping-math \
            $(WARNINGS) $(SANITIZE_FLAGS) -Iinclude -Icsrc -I. $(if $(THIRD_PARTY),-I$(THIRD_PARTY)/include) \
            -DLOOM_VERSION='"$(VERSION)"' -MMD -MP
CFLAGS_  := -std=c11 -D_GNU_SOURCE $(COMMON) -Wstrict-prototypes -Wmissing-prototypes $(DNNL_CFLAGS) $(CFLAGS)
# Tests wait for what they test, and not for themselves: to optimise them takes longer than it saves. The emulation is
# another matter.
CXXFLAGS_ := -std=c++17 $(COMMON) -O0 -g1 $(CXXFLAGS)
EMULATION_FLAGS = $(CXXFLAGS_) $(EMULATED_FLAGS) -O2
LINK_FLAGS := -fopenmp $(SANITIZE_FLAGS) $(CXXFLAGS)
LIBS     := $(MATMUL_LIBS) $(if $(THIRD_PARTY),-L$(THIRD_PARTY)/lib -Wl$(comma)-rpath$(comma)$(abspath $(THIRD_PARTY))/lib) \
            -lcjson -lxxhash -lm -lpthread -ldl
# cuBLASLt is loaded where a GPU is used, cuDNN too, which is found beside its header where it comes in a Python package.
CUDNN_RPATH := $(if $(CUDNN_INCLUDE),-Wl$(comma)-rpath$(comma)$(CUDA)/lib64:$(abspath $(CUDNN_INCLUDE)/../lib))
CUDA_LIBS := $(if $(CUDA),-L$(CUDA)/lib64 -Wl$(comma)-rpath$(comma)$(CUDA)/lib64 -lcudart_static -lrt $(CUDNN_RPATH))
# csrc/cuda is compiled once, for the real CUDA and for the emulation: with NVIDIA's headers where they are.
CUDA_INCLUDE := $(if $(CUDA),$(if $(filter /usr,$(CUDA)),,-isystem $(CUDA)/include),-Idev/emulation/include)
CUDNN_FLAGS  := $(addprefix -isystem ,$(filter-out /usr/include,$(CUDNN_INCLUDE)))
# Kernels use nothing that the lowest architecture lacks: what it is translated to (PTX) is assembled for each, and kept.
VIRTUAL    := compute_$(shell printf '%s\n' $(CUDA_ARCH) | sort -n | head -n 1)
NVCC_FLAGS := -std=c++17 -O3 -lineinfo -Iinclude -I. \
              $(foreach code,$(CUDA_ARCH:%=sm_%) $(VIRTUAL),-gencode=arch=$(VIRTUAL)$(comma)code=$(code)) \
              -Xptxas --warn-on-spills$(if $(STRICT),$(comma)--warning-as-error -Werror all-warnings) \
              -Xcompiler -Wall,-Wextra,-fPIC -MMD -MP
# The emulation reads memory as other types than it was written, as GPUs do. It runs where it was compiled.
EMULATED_FLAGS := -march=$(or $(ARCH),native) -DLOOM_EMULATED -Idev/emulation/include -Idev/emulation -fno-strict-aliasing -Wno-unknown-pragmas

# ------------------------------------------------------------------------------------------------------------- sources
# csrc/cpu's ops are compiled to several tables (csrc/cpu/real.h): in double (the oracle), in float (the definition), and
# for each set of instructions; what makes a CPU device of them once.
MACHINE          := $(addprefix csrc/cpu/,device.c processors.c tables.c)
PRODUCT_onednn   := $(addprefix csrc/cpu/,matmul_library.c matmul_rate.c product_onednn.c)
PRODUCT_openblas := $(addprefix csrc/cpu/,matmul_library.c matmul_rate.c product_openblas.c)
PRODUCT_plain    := csrc/cpu/matmul_plain.c
MACHINE          += $(PRODUCT_$(MATMUL))
OPS          := $(filter-out $(MACHINE) csrc/cpu/matmul_% csrc/cpu/product_%,$(wildcard csrc/cpu/*.c))
SET_OPS      := $(OPS) $(addprefix csrc/cpu/matmul_,$(if $(filter plain,$(MATMUL)),products_absent.c,products.c tiles.c))
SETS_x86_64  := sse2 avx2 avx512
SETS_aarch64 := neon
SETS         := $(or $(SETS_$(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))),plain)
AVX2         := -mavx2 -mfma -mf16c
FLAGS_avx2   := $(AVX2)
FLAGS_avx512 := $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
HOST       := $(filter-out csrc/cpu/% csrc/cuda/% csrc/cases/% csrc/comm/mpi_library.c,$(wildcard csrc/*/*.c csrc/*/*/*.c))
CUDNN      := csrc/cuda/attention_cudnn.c $(wildcard csrc/cuda/cudnn_*.c)
NO_CUDNN   := csrc/cuda/attention_cudnn_absent.c
CUDA_HOST  := $(filter-out csrc/cuda/absent.c $(if $(CUDNN_INCLUDE),$(NO_CUDNN),$(CUDNN)),$(wildcard csrc/cuda/*.c))
KERNELS    := $(wildcard kernels/*.cu)
# nvcc reads CUDA's headers three times for each source: small kernels, and those that differ in a type alone, are one, for
# the emulation too. Small is what is in no other group.
KERNEL_GROUPS := small rows forward backward
KERNELS_alone    := attention_fp32 layernorm
KERNELS_rows     := cross_entropy embedding softmax
KERNELS_forward  := attention_forward_bf16 attention_forward_fp16
KERNELS_backward := attention_backward_bf16 attention_backward_fp16
KERNELS_small    := $(filter-out $(KERNELS_alone) $(KERNELS_rows) $(KERNELS_forward) $(KERNELS_backward),$(sort $(KERNELS:kernels/%.cu=%)))
EMULATION  := $(wildcard dev/emulation/*.cpp)
# The program, and the cases of ops that `parity` and `bench` share with the tests.
PROGRAM    := $(wildcard train/*.c train/*/*.c csrc/cases/*.c)

TABLES         := $(foreach t,definition oracle,$(OPS:csrc/cpu/%.c=$(BUILD)/obj/$t/%.o)) \
                  $(foreach s,$(SETS),$(SET_OPS:csrc/cpu/%.c=$(BUILD)/obj/$s/%.o))
COMMON_OBJECTS := $(HOST:%.c=$(BUILD)/obj/%.o) $(MACHINE:%.c=$(BUILD)/obj/%.o) $(TABLES)
# The library has CUDA where it can be built; the emulated library has the same objects, with emulated kernels, and its
# own cuBLASLt in the place of what loads the library.
LOADER         := $(BUILD)/obj/csrc/cuda/cublaslt_api.o
CUDA_OBJECTS   := $(filter-out $(LOADER),$(CUDA_HOST:%.c=$(BUILD)/obj/%.o))
KERNELS_COMPILED := $(KERNELS_alone) $(KERNEL_GROUPS:%=group_%)
KERNEL_OBJECTS   := $(KERNELS_COMPILED:%=$(BUILD)/obj/kernels/%.o)
LIB_OBJECTS := $(COMMON_OBJECTS) $(if $(CUDA),$(LOADER) $(CUDA_OBJECTS) $(KERNEL_OBJECTS),$(BUILD)/obj/csrc/cuda/absent.o)
EMULATED_OBJECTS := $(COMMON_OBJECTS) $(CUDA_OBJECTS) $(KERNELS_COMPILED:%=$(BUILD)/obj/emulated/kernels/%.o) \
                    $(EMULATION:%.cpp=$(BUILD)/obj/emulated/%.o)
PROGRAM_OBJECTS := $(PROGRAM:%.c=$(BUILD)/obj/%.o)
# What tests link beside the library: the program without its main.
TEST_OBJECTS    := $(filter-out $(BUILD)/obj/train/main.o,$(PROGRAM_OBJECTS))
TESTS           := $(patsubst test/%.cpp,$(BUILD)/test/%,$(filter-out $(if $(CUDA),,test/test_cublaslt_load.cpp) \
                     $(if $(CUDNN_INCLUDE),,test/test_cudnn.cpp),$(wildcard test/test_*.cpp)))
# `make test` compiles test sources in groups, each as one source, which takes half the time; a source that is in none is
# compiled alone. Suites of one name that have other fixtures cannot be of one group. Of each source there is a program of
# its own too, BUILD/test/test_NAME, for those who work on it.
# Those that run longest come first: where there are no logs of earlier runs, they are begun first.
GROUPS := ranks comm precision scripts cli cuda checkpoint train emulation products memory base
GROUP_base       := base options machine cpu_products data text tokenizer
GROUP_checkpoint := checkpoint checkpoint_read checkpoint_ranks golden
GROUP_train      := train plot graph memory definition tape
GROUP_precision  := ops precision
GROUP_scripts    := gpu_report install scaling scripts
GROUP_cli        := cli model
GROUP_ranks      := ranks rank_failures two_hosts rendezvous
# Those of CUDA run on the emulation.
EMULATED_GROUPS  := emulation products cuda memory comm
GROUP_emulation  := emulation ptx cuda_device
GROUP_products   := cublaslt matmul_plans adamw bias_gradient recompute
GROUP_cuda       := cuda_ops cuda_train runtime sampling
GROUP_memory     := plan choose offload trace bits
GROUP_comm       := comm nccl_train
EMULATED_TESTS  := $(patsubst %,$(BUILD)/test/test_%,$(foreach g,$(EMULATED_GROUPS),$(GROUP_$g)))
GROUPED         := $(foreach g,$(GROUPS),$(GROUP_$g))
TESTS_ALONE     := $(filter-out $(GROUPED:%=$(BUILD)/test/test_%),$(TESTS))
TEST_PROGRAMS   := $(GROUPS:%=$(BUILD)/test/group_%) $(TESTS_ALONE)
# What test/run.py is given: a program, or a program and which of its sources.
TEST_RUNS       := $(TESTS_ALONE) $(foreach g,$(GROUPS),$(GROUP_$g:%=$(BUILD)/test/group_$g:test_%))

# What is compiled or linked with other settings (a compiler, CFLAGS, CUDA_ARCH) is made anew: each kind of thing depends on
# a file that holds the settings, and is written where they have become others.
SETTINGS_cc        := $(CC) $(CFLAGS_)
SETTINGS_cxx       := $(CXX) $(CXXFLAGS_)
SETTINGS_cuda      := $(CUDA_INCLUDE) $(CUDNN_FLAGS)
SETTINGS_nvcc      := $(NVCC) $(CXX) $(NVCC_FLAGS)
SETTINGS_emulation := $(CXX) $(EMULATION_FLAGS)
SETTINGS_mpi       := $(MPICC) $(MARCH) $(WARNINGS)
SETTINGS_link      := $(CC) $(CXX) $(LINK_FLAGS) $(CUDA_LIBS) $(LIBS)
settings = $(1:%=$(BUILD)/obj/settings.%)
differ   = $(subst <$(strip $(1))>,,<$(strip $(2))>)$(subst <$(strip $(2))>,,<$(strip $(1))>)
define SETTINGS
$(BUILD)/obj/settings.$(1): $$(if $$(call differ,$$(SETTINGS_$(1)),$$(shell cat $(BUILD)/obj/settings.$(1) 2>/dev/null)),always)
	@mkdir -p $$(@D)
	@printf '%s\n' '$$(subst ','\'',$$(SETTINGS_$(1)))' >$$@
endef
$(foreach s,cc cxx cuda nvcc emulation mpi link,$(eval $(call SETTINGS,$s)))
# What is linked, of all that a program depends on.
linked = $(filter %.o %.a,$^)

# What is made anew but has not changed is as old as it was, and so is not compiled again.
keep_if_same = if cmp -s $(1).new $(1); then rm $(1).new; else mv $(1).new $(1); fi

# One short line per file; V=1 shows the commands.
V ?= 0
quiet = $(if $(filter 0,$(V)),@echo "  $(1) $@" &&,)

.SECONDARY:
.PHONY: all always without-mpi tests setup run test test-full test-faults fuzz sanitize gpu-report install format lines clean help
all: $(BUILD)/gptloom $(BUILD)/libgptloom.a $(BUILD)/emulated/gptloom $(if $(MPICC),$(BUILD)/libgptloom_mpi.so,without-mpi)
tests: all $(TEST_PROGRAMS)

# A library is made anew too where what it is made of has become other files: from a list that only then changes.
$(BUILD)/libgptloom.a: $(LIB_OBJECTS) $(BUILD)/objects.list
$(BUILD)/emulated/libgptloom.a: $(EMULATED_OBJECTS) $(BUILD)/emulated/objects.list
$(BUILD)/libgptloom.a $(BUILD)/emulated/libgptloom.a:
	@rm -f $@
	$(call quiet,AR) $(AR) rcs $@ $(filter %.o,$^)

$(BUILD)/objects.list: LISTED := $(LIB_OBJECTS)
$(BUILD)/emulated/objects.list: LISTED := $(EMULATED_OBJECTS)
$(BUILD)/objects.list $(BUILD)/emulated/objects.list: always
	@mkdir -p $(@D)
	@echo '$(LISTED)' >$@.new; $(call keep_if_same,$@)
always:

# All of MPI is behind this library's one symbol. It is built without sanitizers: MPI itself is.
$(BUILD)/libgptloom_mpi.so: csrc/comm/mpi_library.c $(call settings,mpi)
	@mkdir -p $(@D)
	$(call quiet,MPICC) $(MPICC) -std=c11 -D_GNU_SOURCE -O3 $(MARCH) $(WARNINGS) -Wstrict-prototypes -Iinclude -Icsrc \
	    -fPIC -shared -fvisibility=hidden -MMD -MP -MF $(BUILD)/obj/mpi_library.d -o $@ $<

without-mpi:
	@echo "  mpicc is not here: the program is built without $(BUILD)/libgptloom_mpi.so, and has no communicator by MPI"

# Linked by the C++ compiler: kernels are C++, and so is the emulation.
$(BUILD)/gptloom: $(PROGRAM_OBJECTS) $(BUILD)/libgptloom.a $(call settings,link)
	$(call quiet,LD) $(CXX) $(LINK_FLAGS) -o $@ $(linked) $(CUDA_LIBS) $(LIBS)

# The stand-in for NCCL, a library that it loads, puts its work into the emulation's streams.
$(BUILD)/emulated/gptloom: $(PROGRAM_OBJECTS) $(BUILD)/emulated/libgptloom.a $(call settings,link)
	$(call quiet,LD) $(CXX) $(LINK_FLAGS) -Wl,--export-dynamic-symbol='emulation_*' -o $@ $(linked) $(LIBS)

# The comparison of ops alone, linked with nothing that another processor's toolchain does not bring.
PARITY_OBJECTS := $(addprefix $(BUILD)/obj/,train/command_parity.o train/command_cases.o train/command_line.o train/output.o csrc/engine/synonyms.o) \
                  $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard csrc/cases/*.c) test/parity_program.c)
$(BUILD)/parity: $(PARITY_OBJECTS) $(BUILD)/libgptloom.a $(call settings,link)
	$(call quiet,LD) $(CC) $(LINK_FLAGS) -o $@ $(linked) -lm -lpthread -ldl

$(BUILD)/obj/kernels/%.o: kernels/%.cu $(call settings,nvcc)
	@mkdir -p $(@D)
	$(call quiet,NVCC) $(NVCC) -ccbin $(lastword $(CXX)) $(NVCC_FLAGS) -c $< -o $@

$(KERNEL_GROUPS:%=$(BUILD)/obj/kernels/group_%.cu): $(BUILD)/obj/kernels/group_%.cu: Makefile
	@mkdir -p $(@D)
	@printf '#include "kernels/%s.cu"\n' $(KERNELS_$*) >$@.new; $(call keep_if_same,$@)
$(KERNEL_GROUPS:%=$(BUILD)/obj/kernels/group_%.o): %.o: %.cu $(call settings,nvcc)
	$(call quiet,NVCC) $(NVCC) -ccbin $(lastword $(CXX)) $(NVCC_FLAGS) -c $< -o $@

# Optimising kernels more takes longer than it saves: threads take turns, and what lets them do so is compiled with -O2.
$(BUILD)/obj/emulated/kernels/%.o: kernels/%.cu $(call settings,emulation)
	@mkdir -p $(@D)
	$(call quiet,CXX) $(CXX) $(EMULATION_FLAGS) -O1 -x c++ -c $< -o $@
$(KERNEL_GROUPS:%=$(BUILD)/obj/emulated/kernels/group_%.o): $(BUILD)/obj/emulated/%.o: $(BUILD)/obj/%.cu $(call settings,emulation)
	@mkdir -p $(@D)
	$(call quiet,CXX) $(CXX) $(EMULATION_FLAGS) -O1 -x c++ -c $< -o $@

$(BUILD)/obj/emulated/dev/emulation/%.o: dev/emulation/%.cpp $(call settings,emulation)
	@mkdir -p $(@D)
	$(call quiet,CXX) $(CXX) $(EMULATION_FLAGS) -c $< -o $@

$(BUILD)/obj/csrc/cuda/%.o: csrc/cuda/%.c $(call settings,cc cuda)
	@mkdir -p $(@D)
	$(call quiet,CC) $(CC) $(CFLAGS_) $(CUDA_INCLUDE) $(CUDNN_FLAGS) -c $< -o $@

# Loops that are worth it are marked for vectors: -O3 takes three times as long and finds none beyond them.
define TABLE
$(BUILD)/obj/$(1)/%.o: csrc/cpu/%.c $(call settings,cc)
	@mkdir -p $$(@D)
	$$(call quiet,CC) $$(CC) $$(subst -O3,-O2,$$(CFLAGS_)) -DLOOM_TABLE=$(1) $(2) -c $$< -o $$@
endef
$(foreach s,$(SETS),$(eval $(call TABLE,$s,-ffp-contract=fast -DLOOM_CONTRACTS $(FLAGS_$s))))
$(eval $(call TABLE,definition))
$(eval $(call TABLE,oracle,-DLOOM_ORACLE))

$(BUILD)/obj/%.o: %.c $(call settings,cc)
	@mkdir -p $(@D)
	$(call quiet,CC) $(CC) $(CFLAGS_) -Itest -Itrain -c $< -o $@

$(BUILD)/obj/%.o: %.cpp $(call settings,cxx)
	@mkdir -p $(@D)
	$(call quiet,CXX) $(CXX) $(CXXFLAGS_) -Itest -Itrain -c $< -o $@

# The headers that tests include are compiled once: g++ looks for prelude.h.gch before prelude.h.
PRELUDED := $(GROUPS:%=$(BUILD)/obj/test/group_%.o) $(TESTS:$(BUILD)/%=$(BUILD)/obj/%.o)
$(PRELUDED): private CXXFLAGS_ += -I$(BUILD)/obj/test -include prelude.h
$(PRELUDED): $(BUILD)/obj/test/prelude.h.gch
$(BUILD)/obj/test/prelude.h.gch: test/prelude.h $(call settings,cxx)
	@mkdir -p $(@D)
	$(call quiet,CXX) $(CXX) $(CXXFLAGS_) -x c++-header -c $< -o $@

# A group of tests: first all that they include, then each source in a namespace of its own.
.SECONDEXPANSION:
$(GROUPS:%=$(BUILD)/obj/test/group_%.cpp): $(BUILD)/obj/test/group_%.cpp: $$(foreach t,$$(GROUP_$$*),test/test_$$t.cpp) Makefile
	@mkdir -p $(@D)
	@{ awk '/^extern "C" {$$/ { c = 1 } /^}/ { c = 0 } \
	        /^#include/ && !seen[$$0]++ { print c ? "extern \"C\" {\n" $$0 "\n}" : $$0 }' $(filter %.cpp,$^); \
	   for t in $(GROUP_$*); do printf 'namespace test_%s {\n#include "test_%s.cpp"\n}\n' $$t $$t; done; } >$@.new; \
	 $(call keep_if_same,$@)
$(GROUPS:%=$(BUILD)/obj/test/group_%.o): %.o: %.cpp $(call settings,cxx)
	$(call quiet,CXX) $(CXX) $(CXXFLAGS_) -Itest -Itrain -c $< -o $@

EMULATED_PROGRAMS := $(EMULATED_TESTS) $(EMULATED_GROUPS:%=$(BUILD)/test/group_%)
$(EMULATED_PROGRAMS): $(BUILD)/test/%: $(BUILD)/obj/test/%.o $(TEST_OBJECTS) $(BUILD)/emulated/libgptloom.a $(call settings,link)
	@mkdir -p $(@D)
	$(call quiet,LD) $(CXX) $(LINK_FLAGS) -o $@ $(linked) -lgtest -lgtest_main $(LIBS)

$(BUILD)/test/%: $(BUILD)/obj/test/%.o $(TEST_OBJECTS) $(BUILD)/libgptloom.a $(call settings,link)
	@mkdir -p $(@D)
	$(call quiet,LD) $(CXX) $(LINK_FLAGS) -o $@ $(linked) -lgtest -lgtest_main $(CUDA_LIBS) $(LIBS)

# Test sources that are of the emulation see its headers.
$(patsubst $(BUILD)/test/%,$(BUILD)/obj/test/%.o,$(EMULATED_PROGRAMS)): private CXXFLAGS_ += $(EMULATED_FLAGS)

# test_bits knows what gcc makes of csrc/cpu with the flags above alone.
OTHER_FLAGS := $(if $(ARCH)$(CFLAGS)$(filter-out gcc,$(notdir $(lastword $(CC)))),1,0)
$(BUILD)/obj/test/test_bits.o $(BUILD)/obj/test/group_memory.o: private CXXFLAGS_ += -DLOOM_OTHER_FLAGS=$(OTHER_FLAGS)
$(BUILD)/obj/test/test_bits.o $(BUILD)/obj/test/group_memory.o: $(call settings,cc)

# test_cuda_headers compares the emulation's headers with NVIDIA's.
$(BUILD)/obj/test/test_cuda_headers.o: private CXXFLAGS_ += -Idev/emulation/include
$(BUILD)/obj/test/cuda_headers_nvidia.o: CXXFLAGS_ += $(CUDA_INCLUDE)
ifneq ($(CUDA),)
$(BUILD)/test/test_cuda_headers: $(BUILD)/obj/test/cuda_headers_nvidia.o
endif

$(BUILD)/obj/test/test_cublaslt_load.o: private CXXFLAGS_ += $(CUDA_INCLUDE)

# test_cudnn plans without a GPU: it brings its own driver, in the place of libcuda.so.1.
$(BUILD)/obj/test/test_cudnn.o: private CXXFLAGS_ += $(CUDA_INCLUDE) $(CUDNN_FLAGS)
$(addprefix $(BUILD)/obj/test/,test_cudnn.o test_cublaslt_load.o cuda_headers_nvidia.o nccl_header.o): $(call settings,cuda)
$(BUILD)/test/test_cudnn: $(BUILD)/obj/test/test_cudnn.o $(TEST_OBJECTS) $(BUILD)/emulated/libgptloom.a $(call settings,link) \
                          | $(BUILD)/test/libcuda.so.1
	@mkdir -p $(@D)
	$(call quiet,LD) $(CXX) $(LINK_FLAGS) -o $@ $(linked) -lgtest -lgtest_main $(CUDNN_RPATH) $(LIBS)
$(BUILD)/test/libcuda.so.1: test/cuda_driver.c $(call settings,cc)
	@mkdir -p $(@D)
	$(call quiet,LD) $(CC) -std=c11 -O1 $(WARNINGS) -fPIC -shared -Wl,-soname,libcuda.so.1 -o $@ $<

# Tests of ranks start them: each is a program of its own. Those of test_comm load a stand-in for NCCL that puts its work
# into the emulated device's streams.
$(addprefix $(BUILD)/test/,test_checkpoint_ranks group_checkpoint): | $(BUILD)/test/checkpoint_rank $(if $(MPICC),$(BUILD)/libgptloom_mpi.so)
$(BUILD)/obj/test/comm_rank.o: CXXFLAGS_ += $(EMULATED_FLAGS)
$(addprefix $(BUILD)/test/,test_comm group_comm): | $(BUILD)/test/comm_rank $(BUILD)/test/libnccl_standin.so $(if $(MPICC),$(BUILD)/libgptloom_mpi.so)
ifneq ($(and $(CUDA),$(wildcard $(addsuffix /nccl.h,$(CUDA)/include /usr/include /usr/local/include))),)
$(BUILD)/obj/test/nccl_header.o: CXXFLAGS_ += $(CUDA_INCLUDE)
$(addprefix $(BUILD)/test/,test_comm group_comm): $(BUILD)/obj/test/nccl_header.o
endif
# test_nccl_train and test_gpu_report start the emulated program so.
$(addprefix $(BUILD)/test/,test_gpu_report group_scripts): | $(BUILD)/emulated/gptloom $(BUILD)/test/libnccl_standin.so
$(addprefix $(BUILD)/test/,test_nccl_train group_comm): | $(BUILD)/emulated/gptloom $(BUILD)/test/libnccl_standin.so $(if $(MPICC),$(BUILD)/libgptloom_mpi.so)
$(BUILD)/test/comm_rank $(BUILD)/test/checkpoint_rank: $(BUILD)/test/%: $(BUILD)/obj/test/%.o $(BUILD)/emulated/libgptloom.a $(call settings,link)
	@mkdir -p $(@D)
	$(call quiet,LD) $(CXX) $(LINK_FLAGS) -Wl,--export-dynamic-symbol='emulation_*' -o $@ $(linked) $(LIBS)
$(BUILD)/test/libnccl_standin.so: test/nccl_standin.c csrc/comm/nccl_api.h $(call settings,cc)
	@mkdir -p $(@D)
	$(call quiet,LD) $(CC) -std=c11 -D_GNU_SOURCE -O1 $(WARNINGS) -Iinclude -Icsrc -I. -fPIC -shared -o $@ $< -lrt

# Preloaded, it makes calls of the program fail: test/faults/README.md.
$(BUILD)/test/libfaults.so: test/faults/shim.c $(call settings,cc)
	@mkdir -p $(@D)
	$(call quiet,LD) $(CC) -std=c11 -D_GNU_SOURCE -O1 -g $(WARNINGS) -fPIC -shared -o $@ $< -ldl

# What make fuzz runs, and what runs what that has found again.
FUZZ_TARGETS := $(BUILD)/obj/test/fuzz/targets.o $(if $(CUDA),,$(BUILD)/obj/csrc/cuda/tuning.o)
FUZZ_READS   := path_exists is_directory $(addprefix reader_,open read close) $(addprefix file_,map unmap read_text open cut replace)
FUZZ_FILES   := -Wl$(comma)$(subst $() ,$(comma),$(addprefix --wrap=loom_,$(FUZZ_READS)))
$(BUILD)/test/test_fuzz_corpus: $(FUZZ_TARGETS)
$(BUILD)/test/test_fuzz_corpus $(BUILD)/fuzzer: LINK_FLAGS += $(FUZZ_FILES)
# What these compare tells libFuzzer nothing but what strcmp, which it sees, tells it too, and took most of the time.
FUZZ_WORDS   := $(addprefix csrc/base/,nearest printable flag) $(addprefix csrc/engine/,options synonyms) train/command_line
$(FUZZ_WORDS:%=$(BUILD)/obj/%.o): CFLAGS_ += $(if $(findstring fuzzer,$(SANITIZE)),-fno-sanitize-coverage=trace-cmp)
$(BUILD)/fuzzer: $(BUILD)/obj/test/fuzz/fuzzer.o $(FUZZ_TARGETS) $(TEST_OBJECTS) $(BUILD)/libgptloom.a $(call settings,link)
	$(call quiet,LD) $(CXX) $(LINK_FLAGS) -fsanitize=fuzzer -o $@ $(linked) $(LIBS)

$(BUILD)/test/test_faults: | $(BUILD)/gptloom $(BUILD)/emulated/gptloom $(BUILD)/test/libfaults.so $(BUILD)/test/libnccl_standin.so \
                             $(if $(MPICC),$(BUILD)/libgptloom_mpi.so)

# These start the program, as users do.
$(addprefix $(BUILD)/test/,test_cli group_cli): | $(BUILD)/gptloom $(BUILD)/test/libfaults.so
$(addprefix $(BUILD)/test/,test_rank_failures test_two_hosts group_ranks): | $(BUILD)/gptloom $(if $(MPICC),$(BUILD)/libgptloom_mpi.so)
$(addprefix $(BUILD)/test/,test_two_hosts group_ranks): | $(BUILD)/emulated/gptloom $(BUILD)/test/libnccl_standin.so

# test_ranks starts ranks that train many times each: with an MPI that outlives a communicator.
$(BUILD)/obj/test/train_rank.o: CXXFLAGS_ += $(EMULATED_FLAGS)
$(addprefix $(BUILD)/test/,test_ranks group_ranks): | $(BUILD)/test/train_rank $(BUILD)/test/libmpi_lasting.so $(BUILD)/gptloom \
                            $(BUILD)/emulated/gptloom $(if $(MPICC),$(BUILD)/libgptloom_mpi.so)
$(BUILD)/test/train_rank: $(BUILD)/obj/test/train_rank.o $(BUILD)/emulated/libgptloom.a $(call settings,link)
	@mkdir -p $(@D)
	$(call quiet,LD) $(CXX) $(LINK_FLAGS) -o $@ $(linked) $(LIBS)
$(BUILD)/test/libmpi_lasting.so: test/mpi_lasting.c csrc/comm/mpi_table.h csrc/comm/backend.h $(call settings,cc)
	@mkdir -p $(@D)
	$(call quiet,LD) $(CC) -std=c11 -D_GNU_SOURCE -O1 $(WARNINGS) -Iinclude -Icsrc -I. -fPIC -shared -o $@ $< -ldl

# ------------------------------------------------------------------------------------------------------ what users run
# Set-up may install what the lines above look for, so building is a make of its own.
setup:
	@dev/setup.sh

# The compute capabilities of the GPUs that are here, or else those asked for.
PRESENT_ARCH = $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -u),$(CUDA_ARCH))

#  make run         set up, build, get a text, train a GPT, show its loss and a sample  (DATA=path DATA_URL=url)
run: setup
	@$(MAKE) --no-print-directory CUDA_ARCH="$(PRESENT_ARCH)" $(BUILD)/gptloom
	@BUILD=$(BUILD) dev/first-run.sh

#  make test        set up, build, run the tests
test: setup
	@$(MAKE) --no-print-directory tests
	@test/run.py --logs $(BUILD)/test/logs $(TEST_RUNS)

#  make test-full   all tests, and again in sanitizer builds and with the other libraries for matrix products (these
#                   builds take no toolkit, and so show that none is needed); and the definition's bits as other compilers,
#                   flags and an emulated aarch64 make them
# What no sanitizer sees: tests of scripts and of headers, and one that plans with a library of the toolkit.
UNSANITIZED := $(addprefix $(BUILD)/test/,test_cublaslt_load test_cudnn test_cuda_headers test_faults group_scripts)
SANITIZED = $(patsubst $(BUILD)/%,$(BUILD)/sanitized/%,$(filter-out $(UNSANITIZED) $(UNSANITIZED:%=%:%),$(1)))
FUZZ_CC ?= clang
CLANG_FLAGS := -O2 -Wno-unknown-warning-option -Wno-pass-failed
FUZZ_CXX ?= clang++
# The definition is to have the same bits from any compiler; clang is taken where it is.
OTHER_BITS       := native $(if $(shell command -v $(FUZZ_CXX)),clang)
OTHER_BITS_native = ARCH=native CFLAGS=-O3 CC="$(CC)" CXX="$(CXX)"
OTHER_BITS_clang  = CFLAGS="$(CLANG_FLAGS) -O1" CC="$(FUZZ_CC)" CXX="$(FUZZ_CXX)"
FULL := $(TEST_RUNS) $(call SANITIZED,$(TEST_RUNS)) \
        $(foreach m,openblas plain,$(BUILD)/$(m)/test/test_ops=*matmul*) \
        $(OTHER_BITS:%=$(BUILD)/%/test/test_definition=Definition.*:Math.*)
# Libraries for matrix products differ in a few objects: the others are taken from the build that is there.
test-full: setup
	@MATMUL=openblas dev/setup.sh
	@$(MAKE) --no-print-directory tests $(BUILD)/obj/test/test_ops.o
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/sanitized CUDA= SANITIZE=address,undefined all \
	    $(call SANITIZED,$(TEST_PROGRAMS))
	@for product in openblas plain; do \
	    mkdir -p $(BUILD)/$$product && cp -au $(BUILD)/obj $(BUILD)/$$product/ && \
	    $(MAKE) --no-print-directory BUILD=$(BUILD)/$$product CUDA= MATMUL=$$product $(BUILD)/$$product/test/test_ops || exit; done
	@AARCH64=yes dev/setup.sh
	@$(foreach o,$(OTHER_BITS),$(MAKE) --no-print-directory BUILD=$(BUILD)/$o CUDA= MPICC= MATMUL=plain STRICT= \
	    $(OTHER_BITS_$o) $(BUILD)/$o/test/test_definition &&) true
	@LOOM_TEST_FULL=1 test/run.py --logs $(BUILD)/test/logs $(FULL)
	@dev/aarch64.sh $(BUILD)
	@dev/mutate-kernels.py --build $(BUILD)

#  make test-faults  5000 faults, one at a time, while the program runs: it must lose nothing  (TRIES= SEED=)
TRIES ?= 5000
SEED  ?= 1
test-faults: all $(BUILD)/test/libfaults.so $(BUILD)/test/libnccl_standin.so
	@test/faults/faults.py --build $(BUILD) --tries $(TRIES) --seed $(SEED)

#  make fuzz        for SECONDS=60 each, bytes made up by libFuzzer for everything that reads from outside
SECONDS ?= 60
fuzz:
	@test/fuzz/run.py --check "$(FUZZ_CXX)"
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/fuzz CC="$(FUZZ_CC)" CXX="$(FUZZ_CXX)" CUDA= MPICC= MATMUL=plain \
	    CFLAGS="$(CLANG_FLAGS)" CXXFLAGS="$(CLANG_FLAGS)" SANITIZE=address,undefined,fuzzer-no-link $(BUILD)/fuzz/fuzzer
	@test/fuzz/run.py --program $(BUILD)/fuzz/fuzzer --seconds $(SECONDS)

#  make lines       counts lines of code, by folder
lines:
	@dev/count-lines.py

#  make sanitize    build/sanitized/gptloom, with AddressSanitizer and UndefinedBehaviorSanitizer
sanitize:
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/sanitized SANITIZE=address,undefined all

#  make gpu-report  on a machine with a GPU: build for it, check all kernels, time them, train beside PyTorch; writes a
#                   report (REPORT=folder). Needs nothing but gcc, nvcc and python3; dev/third-party.sh on another machine
#                   collects what cannot be installed here
REPORT ?= dev/reports
gpu-report: STARTED := $(shell date +%s)
gpu-report:
	@dev/gpu-report.py --check
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/gpu STRICT= CUDA_ARCH="$(PRESENT_ARCH)" $(BUILD)/gpu/gptloom \
	    $(if $(MPICC),$(BUILD)/gpu/libgptloom_mpi.so)
	@dev/gpu-report.py --program $(BUILD)/gpu/gptloom --out $(REPORT) --started $(STARTED)

#  make install     program, library, headers and pkg-config file under PREFIX=/usr/local
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include/gptloom
	install $(BUILD)/gptloom $(DESTDIR)$(PREFIX)/bin/
	install -m 644 $(BUILD)/libgptloom.a $(DESTDIR)$(PREFIX)/lib/
	$(if $(MPICC),install $(BUILD)/libgptloom_mpi.so $(DESTDIR)$(PREFIX)/lib/)
	install -m 644 include/gptloom/*.h $(DESTDIR)$(PREFIX)/include/gptloom/
	printf 'prefix=%s\n\nName: gptloom\nDescription: training GPT-style transformers in C\nVersion: %s\nCflags: -I$${prefix}/include\nLibs: -L$${prefix}/lib -lgptloom -fopenmp %s\n' \
	    '$(PREFIX)' '$(VERSION)' '$(strip $(CUDA_LIBS) $(LIBS) $(if $(CUDA),-lstdc++))' > $(DESTDIR)$(PREFIX)/lib/pkgconfig/gptloom.pc

#  make format      clang-format on all sources
format:
	clang-format -i $(shell git ls-files '*.c' '*.h' '*.cpp' '*.cu' '*.cuh')

#  make clean       remove the build folder
clean:
	rm -rf $(BUILD)

#  make help        this
help:
	@sed -n 's/^#  \(make [a-z-]* *.*\)/  \1/p' Makefile

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
