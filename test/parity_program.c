/* `gptloom parity` as a program of its own, which needs nothing of the rest: for processors that have no libraries here
 * (make test-full builds it for aarch64). */
#include "command.h"

int main(int argc, char **argv) {
    return loom_command_parity(argc, argv);
}
