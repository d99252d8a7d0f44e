using System;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text;

/// Compiles a solution with its tests behind it, runs the tests' method and says how it ended, behind a token that the
/// program does not know: it is read before the program is loaded and kept in a local variable. The arguments are the
/// compiler's assembly and the method's name; without one it is Main.
public static class Launcher {
    [DllImport("libc")]
    static extern void _exit(int code);

    public static void Main(string[] arguments) {
        var bytes = new byte[33];
        using (Stream input = Console.OpenStandardInput()) {
            for (int got = 0, more = 1; got < bytes.Length && more > 0; got += more) {
                more = input.Read(bytes, got, bytes.Length - got);
            }
        }
        string token = Encoding.ASCII.GetString(bytes).Trim();
        Stream output = Console.OpenStandardOutput();
        Console.SetIn(TextReader.Null);
        string kind = "passed";
        try {
            var said = new StringWriter();
            string[] options = {
                "-nologo", "-warn:0", "-define:DEBUG", "-target:library", "-out:program.dll", "-reference:System.Numerics",
                "Debug.cs", "Program.cs",
            };
            Type compiler = Assembly.LoadFrom(arguments[0]).GetType("Mono.CSharp.CompilerCallableEntryPoint", true);
            MethodInfo compile = compiler.GetMethod("InvokeCompiler");
            if (!(bool) compile.Invoke(null, new object[] { options, said })) {
                Say(output, token, "compile " + said.ToString().Trim(), 1);
            }
            MethodInfo main = Entry(Assembly.LoadFrom(Path.GetFullPath("program.dll")), arguments);
            if (main == null) {
                Say(output, token, "compile there is not exactly one class with a Main method", 1);
            }
            main.Invoke(null, main.GetParameters().Length == 0 ? null : new object[] { new string[0] });
        } catch (TargetInvocationException wrapped) {
            kind = KindOf(wrapped.InnerException);
        } catch (Exception error) {
            kind = KindOf(error);
        }
        Say(output, token, kind, kind == "passed" ? 0 : 1);
    }

    /// The one method of that name: where there are several, another class's would run in the place of the tests.
    static MethodInfo Entry(Assembly program, string[] arguments) {
        BindingFlags every = BindingFlags.Static | BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.DeclaredOnly;
        string name = arguments.Length > 1 ? arguments[1] : "Main";
        MethodInfo[] found = program.GetTypes().SelectMany(one => one.GetMethods(every)).Where(m => m.Name == name).ToArray();
        return found.Length == 1 ? found[0] : null;
    }

    static string KindOf(Exception error) {
        if (error is TypeInitializationException && error.InnerException != null) {
            return KindOf(error.InnerException);
        }
        string kind = "error";
        if (error is OutOfMemoryException) {
            kind = "memory";
        } else if (error.GetType().FullName == "System.Diagnostics.AssertionFailed") {
            kind = "failed";
        }
        return kind + " " + error.GetType().Name + ": " + error.Message;
    }

    static void Say(Stream output, string token, string text, int code) {
        Console.Out.Flush();
        byte[] line = Encoding.UTF8.GetBytes("\n" + token + " " + text + "\n");
        output.Write(line, 0, line.Length);
        output.Flush();
        _exit(code);
    }
}
