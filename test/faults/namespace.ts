/**
 * A network of a test's own: a namespace, joined to this machine by cables that can be cut without anybody noticing.
 */
import { randomInt } from 'node:crypto';
import { run } from './machine.ts';

/** What a namespace takes: `missing(...NEEDED)`. */
export const NEEDED = ['ip', 'iptables'] as const;

/** A way between this machine and a namespace. */
export interface Cable {
  /** This machine's end. */
  readonly near: string;
  /** The end inside. */
  readonly far: string;
  /** From now on every packet is lost, both ways, and nobody is told. */
  cut(): void;
  /** The cable is whole again. */
  mend(): void;
}

/** A namespace. Dispose of it, and its cables go with it. */
export interface Namespace extends Disposable {
  /** Runs a command inside, by exec. */
  readonly under: readonly string[];
  /** Sets a kernel parameter inside. */
  sysctl(name: string, value: string): void;
  lay(): Cable;
}

/** Makes one; as root, and only where `missing(...NEEDED)` finds nothing. */
export function openNamespace(): Namespace {
  const id = `${process.pid % 10_000}x${randomInt(1_000)}`;
  const name = `pgjot-${id}`;
  const under = ['ip', 'netns', 'exec', name] as const;
  const inside = (...command: string[]) => run(...under, ...command);
  let cables = 0;
  const mends: (() => void)[] = [];
  run('ip', 'netns', 'add', name);
  inside('ip', 'link', 'set', 'lo', 'up');
  return {
    under,
    sysctl: (parameter, value) => void inside('sysctl', '-q', '-w', `${parameter}=${value}`),
    lay() {
      const [outer, inner] = [`pj${id}o${cables}`, `pj${id}i${cables}`];
      cables++;
      const network = `10.213.${randomInt(256)}`;
      const first = randomInt(64) * 4;
      const [near, far] = [`${network}.${first + 1}`, `${network}.${first + 2}`];
      run('ip', 'link', 'add', outer, 'type', 'veth', 'peer', 'name', inner, 'netns', name);
      run('ip', 'addr', 'add', `${near}/30`, 'dev', outer);
      run('ip', 'link', 'set', outer, 'up');
      inside('ip', 'addr', 'add', `${far}/30`, 'dev', inner);
      inside('ip', 'link', 'set', inner, 'up');
      // Where they arrive: a kernel knows of the packets that it drops itself on their way out.
      const filter = (action: '-A' | '-D') => {
        inside('iptables', action, 'INPUT', '-i', inner, '-j', 'DROP');
        run('iptables', action, 'INPUT', '-i', outer, '-j', 'DROP');
      };
      let isCut = false;
      const mend = () => {
        if (isCut) filter('-D');
        isCut = false;
      };
      mends.push(mend);
      return {
        near,
        far,
        cut() {
          filter('-A');
          isCut = true;
        },
        mend,
      };
    },
    [Symbol.dispose]() {
      for (const mend of mends) mend();
      run('ip', 'netns', 'del', name);
    },
  };
}
